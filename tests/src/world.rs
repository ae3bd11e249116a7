//! Steps 1 to 4: an operator, with keys, releases and a server.

use crate::process::{Run, Service, run};
use crate::programs::Programs;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The architecture of the releases here.
pub const ARCH: &str = "x86-64";

/// An operator's folder with keys and releases, and a server that runs.
#[derive(Debug)]
pub struct World {
    /// The programs in use.
    pub programs: Programs,
    folder: PathBuf,
    server: Option<Service>,
    address: String,
    /// What the servers find in their environment besides what is there anyway.
    environment: Vec<(String, String)>,
    // Dropped last: the folder goes when the server is gone.
    _temporary: Option<tempfile::TempDir>,
}

/// A release that was built.
#[derive(Clone, Debug)]
pub struct Release {
    /// Its version.
    pub version: String,
    /// Its folder: the manifest and the payload.
    pub folder: PathBuf,
    /// Its manifest.
    pub manifest: protocol::manifest::Manifest,
}

impl Release {
    /// Its full payload.
    ///
    /// # Errors
    /// Where the manifest names none.
    pub fn payload(&self) -> Result<&protocol::manifest::PayloadFile> {
        self.manifest.full_payload().context("the manifest names no full payload")
    }
}

impl World {
    /// A world in a temporary folder that goes with it.
    ///
    /// # Errors
    /// Where a program is missing or fails.
    pub fn new() -> Result<Self> {
        Self::with_environment(Vec::new())
    }

    /// The same, with these variables in the environment of its servers.
    ///
    /// # Errors
    /// As there.
    pub fn with_environment(environment: Vec<(String, String)>) -> Result<Self> {
        let temporary = tempfile::Builder::new().prefix("flipside-").tempdir()?;
        let folder = temporary.path().to_owned();
        Self::make(Programs::find()?, folder, environment, Some(temporary))
    }

    /// A world in a folder that stays.
    ///
    /// # Errors
    /// Where a program fails.
    pub fn in_folder(programs: Programs, folder: &Path) -> Result<Self> {
        Self::make(programs, folder.to_owned(), Vec::new(), None)
    }

    fn make(
        programs: Programs,
        folder: PathBuf,
        environment: Vec<(String, String)>,
        temporary: Option<tempfile::TempDir>,
    ) -> Result<Self> {
        let address = String::new();
        let mut world = Self { programs, folder, server: None, address, environment, _temporary: temporary };
        let data = world.server_data();
        run(&mut world.update_server("init", &data))?.ok()?;
        let online = data.join("online-keys.pub.json");
        world
            .image_tools(&["keys", "init", "--dir", path(&world.keys())?, "--online", path(&online)?])?
            .ok()?;
        world.start_server()?;
        world.updatectl(&["root", "push", path(&world.keys())?])?.ok()?;
        Ok(world)
    }

    /// Starts the server, on a free port the first time and on the same one after [`Self::stop_server`].
    ///
    /// # Errors
    /// Where it does not come up.
    pub fn start_server(&mut self) -> Result<()> {
        let listen = self.address.strip_prefix("http://").unwrap_or("127.0.0.1:0").to_owned();
        let service = self.serve(&self.server_data(), &listen)?;
        service.address()?.clone_into(&mut self.address);
        self.server = Some(service);
        Ok(())
    }

    /// Starts a server on a data folder, such as a copy of [`Self::server_data`].
    ///
    /// # Errors
    /// Where it does not come up.
    pub fn serve(&self, data: &Path, listen: &str) -> Result<Service> {
        let mut command = self.update_server("serve", data);
        Service::start(command.args(["--listen", listen]), &data.with_extension("log"))
    }

    fn update_server(&self, verb: &str, data: &Path) -> Command {
        let mut command = Command::new(&self.programs.update_server);
        command.arg(verb).arg("--data-dir").arg(data).envs(self.environment.iter().cloned());
        command
    }

    /// From now on the operator reaches the server here, such as at a balancer.
    pub fn reach(&mut self, address: &str) {
        address.clone_into(&mut self.address);
    }

    /// Ends the server by its process id, without notice.
    pub fn stop_server(&mut self) {
        self.server = None;
    }

    /// The running server.
    ///
    /// # Errors
    /// Where it was stopped.
    pub fn server(&self) -> Result<&Service> {
        self.server.as_ref().context("the server does not run")
    }

    /// Where everything lies.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The server's address, as `http://127.0.0.1:1234`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The server's data folder.
    #[must_use]
    pub fn server_data(&self) -> PathBuf {
        self.folder.join("srv")
    }

    /// The operator's keys.
    #[must_use]
    pub fn keys(&self) -> PathBuf {
        self.folder.join("keys")
    }

    /// Runs `image-tools`.
    ///
    /// # Errors
    /// Where it cannot be run; how it ends is the caller's business.
    pub fn image_tools(&self, arguments: &[&str]) -> Result<Run> {
        run(Command::new(&self.programs.image_tools).args(arguments).current_dir(&self.folder))
    }

    /// Makes a boot image of this length whose kernel holds `content`, as `NAME.img` in the world's folder.
    ///
    /// # Errors
    /// Where it fails.
    pub fn boot_image(&self, name: &str, content: &[u8], size: &str) -> Result<PathBuf> {
        let (kernel, image) =
            (self.folder.join(format!("{name}.vmlinuz")), self.folder.join(format!("{name}.img")));
        std::fs::write(&kernel, crate::images::kernel(content))?;
        let arguments = ["boot-image", "build", "--kernel", path(&kernel)?, "--out", path(&image)?];
        let more = ["--cmdline", "panic=10", "--size", size];
        self.image_tools(&[&arguments[..], &more].concat())?.ok()?;
        Ok(image)
    }

    /// Runs `updatectl` as the operator.
    ///
    /// # Errors
    /// Where it cannot be run; how it ends is the caller's business.
    pub fn updatectl(&self, arguments: &[&str]) -> Result<Run> {
        run(&mut self.operator(arguments)?)
    }

    /// The command that runs `updatectl` as the operator.
    ///
    /// # Errors
    /// Where the operator's token cannot be read.
    pub fn operator(&self, arguments: &[&str]) -> Result<Command> {
        let token = std::fs::read_to_string(self.server_data().join("admin-token"))?;
        let mut command = Command::new(&self.programs.updatectl);
        command
            .args(arguments)
            .current_dir(&self.folder)
            .env("UPDATECTL_SERVER", &self.address)
            .env("UPDATECTL_TOKEN", token.trim());
        Ok(command)
    }

    /// Builds a release; `more` are further arguments of `image-tools release build`.
    ///
    /// # Errors
    /// Where it fails, or the manifest it writes cannot be used.
    pub fn build(&self, version: &str, root: &Path, more: &[&str]) -> Result<Release> {
        let folder = self.folder.join(format!("rel-{version}"));
        let mut arguments = vec![
            "release",
            "build",
            "--version",
            version,
            "--arch",
            ARCH,
            "--root",
            path(root)?,
            "--out",
            path(&folder)?,
        ];
        arguments.extend_from_slice(more);
        self.image_tools(&arguments)?.ok()?;
        let bytes = std::fs::read(folder.join("manifest.json"))?;
        let manifest = protocol::manifest::Manifest::parse(&bytes, &version.parse()?, &ARCH.parse()?)?;
        Ok(Release { version: version.to_owned(), folder, manifest })
    }

    /// Signs a release with the offline key and uploads it.
    ///
    /// # Errors
    /// Where it fails.
    pub fn push(&self, release: &Release) -> Result<()> {
        let key = self.keys().join("targets.pem");
        self.updatectl(&["release", "push", path(&release.folder)?, "--key", path(&key)?])?.ok().map(drop)
    }

    /// Points a channel at a version.
    ///
    /// # Errors
    /// Where it fails.
    pub fn set_channel(&self, channel: &str, version: &str) -> Result<()> {
        self.updatectl(&["channel", "set", channel, version])?.ok().map(drop)
    }

    /// Builds, signs and uploads a release, and points a channel at it.
    ///
    /// # Errors
    /// Where one of the steps fails.
    pub fn publish(&self, version: &str, root: &Path, channel: &str, more: &[&str]) -> Result<Release> {
        let release = self.build(version, root, more)?;
        self.push(&release)?;
        self.set_channel(channel, version)?;
        Ok(release)
    }

    /// Where the server keeps a release's payload.
    ///
    /// # Errors
    /// Where the manifest names none.
    pub fn stored_payload(&self, release: &Release) -> Result<PathBuf> {
        Ok(self.server_data().join("payloads").join(release.payload()?.sha256.to_string()))
    }
}

/// Changes one byte of a file, behind everyone's back. Twice undoes it.
///
/// # Errors
/// Where the file cannot be read or written there.
pub fn flip_byte(file: &Path, offset: u64) -> Result<()> {
    let handle = File::options().read(true).write(true).open(file)?;
    let mut byte = [0];
    handle.read_exact_at(&mut byte, offset)?;
    handle.write_all_at(&[byte[0] ^ 0x40], offset)?;
    Ok(())
}

/// A path as text, for command lines.
///
/// # Errors
/// Where it is not UTF-8.
pub fn path(path: &Path) -> Result<&str> {
    match path.to_str() {
        Some(text) => Ok(text),
        None => bail!("{} is not UTF-8", path.display()),
    }
}
