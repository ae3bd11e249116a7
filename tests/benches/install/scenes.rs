//! What is measured.

use crate::measure::{Cost, drop_caches, median, timed, warm};
use crate::peers::{curl_zstd_dd, serve_file, zstd_stream};
use crate::report::Report;
use anyhow::{Context, Result, ensure};
use protocol::slot::Slot;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;
use tests::blockdev::LoopDevice;
use tests::hostile::{Action, Proxy};
use tests::images::text;
use tests::node::{Node, Setup};
use tests::process::run;
use tests::programs::Programs;
use tests::world::{Release, World, path};

/// A server with a release for each image, and where the work is done.
pub(crate) struct Stage {
    work: PathBuf,
    world: World,
    images: Vec<PathBuf>,
    releases: Vec<Release>,
    runs: usize,
}

const MIB: f64 = 1_048_576.0;
const MB: f64 = 1e6;
/// Each image's release; the channel that points at it has the same number.
const VERSIONS: [&str; 3] = ["1.0.0", "2.0.0", "3.0.0"];

#[expect(clippy::cast_precision_loss, reason = "figures for people: 53 bits are plenty")]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

impl Stage {
    /// Builds what is missing; says how long building took where it did.
    pub(crate) fn open(
        work: &Path,
        images: &[PathBuf],
        level: Option<i32>,
        runs: usize,
        report: &mut Report,
    ) -> Result<Self> {
        let folder = work.join("world");
        if folder.exists() {
            std::fs::remove_dir_all(&folder).context("the last run's world cannot be removed")?;
        }
        std::fs::create_dir_all(&folder)?;
        let world = World::in_folder(Programs::build()?, &folder)?;
        let mut releases = Vec::new();
        for (image, version) in images.iter().zip(VERSIONS) {
            let release = built(work, &world, image, version, level, report)?;
            world.push(&release)?;
            world.set_channel(&channel(version), version)?;
            releases.push(release);
        }
        Ok(Self { work: work.to_owned(), world, images: images.to_vec(), releases, runs })
    }

    fn newest(&self) -> Result<(&PathBuf, &Release)> {
        Ok((
            self.images.get(1).context("no second image")?,
            self.releases.get(1).context("no second release")?,
        ))
    }

    /// A node on a loop device whose slot A holds `root`.
    fn node<'a>(
        &'a self,
        name: &str,
        server: &str,
        root: &Path,
        running: &str,
        target: &str,
    ) -> Result<Bench<'a>> {
        let largest =
            self.images.iter().map(|image| Ok(image.metadata()?.len())).collect::<Result<Vec<_>>>()?;
        let slot = largest.into_iter().max().unwrap_or_default().div_ceil(1 << 20) + 8;
        let setup = Setup {
            root,
            version: running,
            slot_size: &format!("{slot}M"),
            disk_arguments: &[],
            channel: &channel(target),
            strategy: "off",
            config: "",
        };
        let folder = self.world.folder().join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        let mut node = Node::new(&self.world, name, server, &setup)?;
        let device = LoopDevice::attach(&node.disk, 512)?;
        node.disk = device.path().to_owned();
        Ok(Bench { node, _device: device })
    }

    /// Length of the full payload beside one `zstd -19` stream of the same image.
    pub(crate) fn payload_size(&self, report: &mut Report) -> Result<()> {
        let (image, release) = self.newest()?;
        let stream = zstd_stream(&self.work, image)?.metadata()?.len();
        let payload = release.payload()?;
        report.add("full payload", float(payload.size) / MB, "MB");
        report.add("its head (header and index)", float(payload.head_size) / MB, "MB");
        report.add("one zstd -19 stream", float(stream) / MB, "MB");
        report.add("full payload of one zstd -19 stream", float(payload.size) / float(stream), "times");
        Ok(())
    }

    /// Nothing of the image is on the disk before.
    pub(crate) fn full_install(&self, report: &mut Report) -> Result<()> {
        let (image, release) = self.newest()?;
        let tiny = self.world.folder().join("tiny.img");
        std::fs::write(&tiny, text(1, 1 << 20))?;
        let stored = self.world.stored_payload(release)?;
        let stream = zstd_stream(&self.work, image)?;
        let url = serve_file(stream.clone())?;
        let root = release.manifest.partition(&"root".parse()?).context("no root image")?;
        let (sum, length) = (root.sha256.to_string(), root.size);
        let (mut ours, mut theirs, mut theirs_checked) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.runs {
            // A fresh disk each time: a file whose second slot is empty.
            let bench = self.node("full", self.world.address(), &tiny, "1.0.0", "2.0.0")?;
            ours.push(bench.engine(&self.work, &stored)?);
            bench.node.compare(Slot::B, "root", image)?;
            drop(bench);
            let (file, device) = scratch_device(&self.work, length)?;
            theirs.push(curl_zstd_dd(&self.work, &stream, &url, device.path(), None)?);
            device.detach()?;
            std::fs::remove_file(file)?;
            let (file, device) = scratch_device(&self.work, length)?;
            theirs_checked.push(curl_zstd_dd(
                &self.work,
                &stream,
                &url,
                device.path(),
                Some((&sum, length)),
            )?);
            device.detach()?;
            std::fs::remove_file(file)?;
        }
        add_cost(report, "full install, checked before the write and read back", median(ours)?);
        add_cost(report, "curl, zstd -d, dd oflag=direct", median(theirs)?);
        add_cost(report, "the same and read back with openssl", median(theirs_checked)?);
        Ok(())
    }

    /// Each image to the next: what is fetched, and how long it takes.
    pub(crate) fn adaptive(&self, report: &mut Report) -> Result<()> {
        for step in 1..self.images.len() {
            let (from, to) = (&self.images[step - 1], &self.images[step]);
            let bench =
                self.node("adaptive", self.world.address(), from, VERSIONS[step - 1], VERSIONS[step])?;
            let cost = bench.engine(&self.work, &self.world.stored_payload(&self.releases[step])?)?;
            bench.node.compare(Slot::B, "root", to)?;
            let progress = bench.node.status()?.progress;
            let name = format!("v{step} to v{}", step + 1);
            report.add(
                format!("fetched, {name}, index included"),
                float(progress.bytes_downloaded) / MB,
                "MB",
            );
            add_cost(report, &format!("update {name}"), cost);
        }
        Ok(())
    }

    /// The engine is killed when 90 % of the payload have come.
    pub(crate) fn resume(&self, report: &mut Report) -> Result<()> {
        let (image, release) = self.newest()?;
        let tiny = self.world.folder().join("tiny.img");
        let proxy = Proxy::start(self.world.address())?;
        let bench = self.node("resume", &proxy.address(), &tiny, "1.0.0", "2.0.0")?;
        let whole = release.payload()?.size;
        let left = Arc::new(AtomicU64::new(whole / 10 * 9));
        proxy.set_rule(move |request| {
            if request.is_payload() { Action::Budget(Arc::clone(&left)) } else { Action::Forward }
        });
        let mut engine = bench.node.start_engine(&[])?;
        proxy.wait_for_stall()?;
        bench.node.wait_downloaded(proxy.payload_bytes())?;
        engine.kill()?;
        engine.wait()?;
        drop_caches()?;
        proxy.behave();
        drop(proxy.take_seen());
        let started = Instant::now();
        let engine = bench.node.start_engine(&[])?;
        let first_write = first_write(&engine, started)?;
        engine.wait()?.ok()?;
        bench.node.compare(Slot::B, "root", image)?;
        let again = proxy.payload_bytes();
        report.add(
            "fetched again after a kill at 90 %",
            100.0 * float(again) / float(whole),
            "% of the payload",
        );
        report.add("first write after that restart", first_write, "s");
        Ok(())
    }

    /// The inactive slot already holds the release; the engine does not know.
    pub(crate) fn nothing_changed(&self, report: &mut Report) -> Result<()> {
        let (image, release) = self.newest()?;
        let tiny = self.world.folder().join("tiny.img");
        let bench = self.node("unchanged", self.world.address(), &tiny, "1.0.0", "2.0.0")?;
        bench.node.engine(&[])?.ok()?;
        std::fs::remove_dir_all(bench.node.state())?;
        let cost = bench.engine(&self.work, &self.world.stored_payload(release)?)?;
        bench.node.compare(Slot::B, "root", image)?;
        let progress = bench.node.status()?.progress;
        let data = progress.bytes_downloaded.saturating_sub(release.payload()?.head_size);
        report.add("nothing changed: fetched beside the index", float(data), "bytes");
        report.add("nothing changed: written to the slot", float(progress.bytes_written), "bytes");
        add_cost(report, "nothing changed", cost);
        Ok(())
    }
}

/// A node on a loop device, which goes with it.
struct Bench<'w> {
    node: Node<'w>,
    _device: LoopDevice,
}

impl Bench<'_> {
    /// One run of the engine with cold caches, but for the payload on the server's side.
    fn engine(&self, work: &Path, payload: &Path) -> Result<Cost> {
        drop_caches()?;
        warm(payload)?;
        timed(work, &self.node.engine_command(&[]))
    }
}

fn channel(version: &str) -> String {
    format!("to-{}", &version[..1])
}

fn add_cost(report: &mut Report, name: &str, cost: Cost) {
    report.add(format!("{name}: wall"), cost.wall_s, "s");
    report.add(format!("{name}: CPU"), cost.cpu_s, "s");
    report.add(format!("{name}: peak memory"), cost.peak_mib, "MiB");
}

/// A file of this length behind a loop device.
fn scratch_device(work: &Path, length: u64) -> Result<(PathBuf, LoopDevice)> {
    let file = work.join("scratch.img");
    std::fs::File::create(&file)?.set_len(length)?;
    let device = LoopDevice::attach(&file, 512)?;
    Ok((file, device))
}

/// The release of an image, from the work folder where an earlier run built it from the same bytes.
fn built(
    work: &Path,
    world: &World,
    image: &Path,
    version: &str,
    level: Option<i32>,
    report: &mut Report,
) -> Result<Release> {
    let length = image.metadata()?.len();
    let name = image.file_name().context("an image without a name")?.to_string_lossy().into_owned();
    let level_text = level.map(|level| level.to_string());
    let kept = work.join(format!("release-{name}-{version}-{}", level_text.as_deref().unwrap_or("default")));
    if !kept.join("manifest.json").exists() {
        let mut command = std::process::Command::new(&world.programs.image_tools);
        command.args(["release", "build", "--version", version, "--arch", "x86-64", "--root", path(image)?]);
        command.arg("--out").arg(&kept);
        if let Some(level) = &level_text {
            command.args(["--level", level]);
        }
        let cost = timed(work, &command)?;
        report.add(format!("building {name}: wall"), cost.wall_s, "s");
        report.add(format!("building {name}: peak memory"), cost.peak_mib, "MiB");
    }
    let bytes = std::fs::read(kept.join("manifest.json"))?;
    let manifest = protocol::manifest::Manifest::parse(&bytes, &version.parse()?, &"x86-64".parse()?)?;
    let root = manifest.partition(&"root".parse()?).context("no root image")?;
    let sum = run(std::process::Command::new("sha256sum").arg(image))?.ok()?;
    ensure!(
        root.size == length && sum.stdout.starts_with(&root.sha256.to_string()),
        "{} is of another image: remove it",
        kept.display()
    );
    Ok(Release { version: version.to_owned(), folder: kept, manifest })
}

/// Seconds until the process has written half a MiB to disks, far more than its state files are.
fn first_write(engine: &tests::process::Running, started: Instant) -> Result<f64> {
    loop {
        let text = std::fs::read_to_string(format!("/proc/{}/io", engine.id()))
            .context("the engine ended before it wrote anything")?;
        let line =
            text.lines().find_map(|line| line.strip_prefix("write_bytes: ")).context("no write_bytes")?;
        if line.parse::<f64>()? > MIB / 2.0 {
            return Ok(started.elapsed().as_secs_f64());
        }
        std::thread::yield_now();
    }
}
