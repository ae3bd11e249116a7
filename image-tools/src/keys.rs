//! Step 3, metadata: `image-tools keys`. Makes the offline keys, signs the first root.json and targets.json, and
//! chains new roots when keys are replaced or root comes near its expiry.
//!
//! Keys are never overwritten or removed: a replaced key keeps its file, its successor gets the next number
//! (`targets-2.pem`), and which file holds which key is found out by key id.

use crate::output;
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use trust::document::{self, RoleKeys, RootContent, TargetsChange, expiry};
use trust::folder::{self, root_key_name, root_name};
use trust::{
    OnlinePublicKeys, PublicKey, Root, SigningKey, Targets, Verified, verify_root_chain,
    verify_targets_signatures,
};

/// The schema number of what `--json` prints.
const SCHEMA: u32 = 1;
/// Signed here only where the channels key is kept offline; its presence says so.
const CHANNELS_FILE: &str = "channels.json";

/// `image-tools keys …`
#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Make the offline keys and sign root.json and targets.json, version 1
    Init(InitArgs),
    /// Sign the next root: with new keys, or renewed with the same ones
    Rotate(RotateArgs),
}

/// For how long what is signed here stays valid.
#[derive(Debug, Args)]
struct DaysArgs {
    /// Days until root.json expires
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u16).range(1..))]
    root_days: u16,
    /// Days until targets.json expires; `updatectl release renew` renews it
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u16).range(1..))]
    targets_days: u16,
}

/// `image-tools keys init`
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Folder for the keys and what they sign; made if it is not there
    #[arg(long)]
    dir: PathBuf,
    /// The server's online-keys.pub.json, made by `update-server init`
    #[arg(long, value_name = "FILE")]
    online: PathBuf,
    /// How many root keys to make
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    root_keys: u8,
    /// How many of them must sign a root
    #[arg(long, value_name = "M", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    threshold: u8,
    /// Keep the channels key offline, in this file (made if it is not there), instead of on the server
    #[arg(long, value_name = "FILE")]
    channels_key: Option<PathBuf>,
    #[command(flatten)]
    days: DaysArgs,
}

/// A role whose offline key can be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Replace {
    /// All root keys
    Root,
    /// The targets key
    Targets,
}

/// `image-tools keys rotate`
#[derive(Debug, Args)]
pub(crate) struct RotateArgs {
    /// The folder that `keys init` made; it must hold enough of the present root keys
    #[arg(long)]
    dir: PathBuf,
    /// Make new keys for this role; may be given twice. Without it root is renewed with the same keys
    #[arg(long, value_name = "ROLE")]
    replace: Vec<Replace>,
    /// A new online-keys.pub.json: another server, or the same one after its keys were lost or stolen
    #[arg(long, value_name = "FILE")]
    online: Option<PathBuf>,
    /// With --replace root: how many keys to make; as many as now by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    root_keys: Option<u8>,
    /// How many root keys must sign; as now by default
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u8).range(1..=16))]
    threshold: Option<u8>,
    #[command(flatten)]
    days: DaysArgs,
}

/// Runs `image-tools keys …`; prints what was made.
pub(crate) fn run(command: &KeysCommand, json: bool) -> Result<()> {
    let now = Timestamp::now();
    let made = match command {
        KeysCommand::Init(args) => init(args, now)?,
        KeysCommand::Rotate(args) => rotate(args, now)?,
    };
    if json {
        println!("{}", made.to_json());
    } else {
        made.print();
    }
    Ok(())
}

/// What a command made.
#[derive(Debug)]
struct Made {
    root: Verified<Root>,
    targets: Option<Verified<Targets>>,
    files: Vec<PathBuf>,
}

impl Made {
    fn to_json(&self) -> Value {
        let role =
            |name| json!({ "key_ids": self.root.key_ids(name), "threshold": self.root.threshold(name) });
        json!({
            "schema": SCHEMA,
            "root": {
                "version": self.root.version(),
                "expires": self.root.expires().to_string(),
                "roles": {
                    "root": role("root"), "targets": role("targets"),
                    "snapshot": role("snapshot"), "timestamp": role("timestamp"),
                },
            },
            "targets": self.targets.as_ref().map(|targets| json!({
                "version": targets.version(),
                "expires": targets.expires().to_string(),
                "channels_key_ids": targets.channels_key_ids(),
            })),
            "files": self.files,
        })
    }

    fn print(&self) {
        println!("root version {}, expires {}", self.root.version(), self.root.expires());
        for role in ["root", "targets", "snapshot", "timestamp"] {
            println!("  {role}: {} of {}", self.root.threshold(role), self.root.key_ids(role).join(", "));
        }
        if let Some(targets) = &self.targets {
            println!("targets version {}, expires {}", targets.version(), targets.expires());
            println!("  channels: {}", targets.channels_key_ids().join(", "));
        }
        for file in &self.files {
            println!("wrote {}", file.display());
        }
    }
}

fn days(days: u16) -> SignedDuration {
    SignedDuration::from_hours(24 * i64::from(days))
}

fn publics(keys: &[SigningKey]) -> Vec<PublicKey> {
    keys.iter().map(|key| key.public().clone()).collect()
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    output::write(path, |file, _| Ok(file.write_all(bytes)?))
}

fn init(args: &InitArgs, now: Timestamp) -> Result<Made> {
    ensure!(
        args.threshold <= args.root_keys,
        "--threshold {} cannot be met: expected at most --root-keys, which is {}",
        args.threshold,
        args.root_keys
    );
    let online = OnlinePublicKeys::load(&args.online)?;
    std::fs::create_dir_all(&args.dir)
        .with_context(|| format!("cannot make the folder {}", args.dir.display()))?;
    refuse_to_overwrite(args)?;

    let root_keys = (0..args.root_keys).map(|_| SigningKey::generate()).collect::<Result<Vec<_>, _>>()?;
    let targets_key = SigningKey::generate()?;
    let channels_key = args.channels_key.as_deref().map(load_or_generate).transpose()?;
    let channels = channels_key.as_ref().map_or(&online.channels, |(key, _)| key.public());

    let content = RootContent {
        version: 1,
        expires: expiry(now, days(args.days.root_days)),
        root: RoleKeys { keys: publics(&root_keys), threshold: args.threshold.into() },
        targets: RoleKeys::one(targets_key.public().clone()),
        snapshot: RoleKeys::one(online.snapshot.clone()),
        timestamp: RoleKeys::one(online.timestamp.clone()),
    };
    let root_bytes = document::root(&content, &root_keys.iter().collect::<Vec<_>>())?;
    let targets_expire = expiry(now, days(args.days.targets_days));
    let targets_bytes =
        document::first_targets(&RoleKeys::one(channels.clone()), targets_expire, &[&targets_key])?;
    // What goes out is checked as a stranger would check it.
    let root = verify_root_chain(&[root_bytes])?;
    let targets = verify_targets_signatures(&targets_bytes, &root)?;

    // Keys first: metadata that nobody can sign again would be worse than keys that sign nothing yet.
    let mut files = Vec::new();
    let named = root_keys.iter().enumerate().map(|(i, key)| (root_key_name(i + 1), key));
    for (name, key) in named.chain([("targets.pem".to_owned(), &targets_key)]) {
        let path = args.dir.join(name);
        key.save(&path)?;
        files.push(path);
    }
    if let (Some((key, true)), Some(path)) = (&channels_key, &args.channels_key) {
        key.save(path)?;
        files.push(path.clone());
    }
    if let Some((key, _)) = &channels_key {
        let path = args.dir.join(CHANNELS_FILE);
        write(&path, &document::channels(1, [], targets_expire, &[key])?)?;
        files.push(path);
    }
    write_metadata(&args.dir, &root, Some(&targets), &mut files)?;
    Ok(Made { root, targets: Some(targets), files })
}

fn refuse_to_overwrite(args: &InitArgs) -> Result<()> {
    let keys = (1..=16).map(root_key_name);
    let metadata =
        ["targets.pem", "root.json", "1.root.json", "targets.json", CHANNELS_FILE].map(str::to_owned);
    for name in keys.chain(metadata) {
        let path = args.dir.join(name);
        ensure!(
            !path.exists(),
            "{} exists: expected a folder without keys, because lost keys cannot be made again; \
             choose another --dir, or use `keys rotate`",
            path.display()
        );
    }
    Ok(())
}

/// The key of a file, or a new one (`true`) to be saved there.
fn load_or_generate(path: &Path) -> Result<(SigningKey, bool)> {
    if path.exists() { Ok((SigningKey::load(path)?, false)) } else { Ok((SigningKey::generate()?, true)) }
}

/// Root under both of its names, then targets. A crash between them is mended by another `keys rotate`.
fn write_metadata(
    dir: &Path,
    root: &Verified<Root>,
    targets: Option<&Verified<Targets>>,
    files: &mut Vec<PathBuf>,
) -> Result<()> {
    let mut out = vec![(root_name(root.version()), root.bytes()), ("root.json".to_owned(), root.bytes())];
    out.extend(targets.map(|targets| ("targets.json".to_owned(), targets.bytes())));
    for (name, bytes) in out {
        let path = dir.join(name);
        write(&path, bytes)?;
        files.push(path);
    }
    Ok(())
}

fn rotate(args: &RotateArgs, now: Timestamp) -> Result<Made> {
    let chain = folder::roots(&args.dir)?;
    let old = verify_root_chain(&chain).context("the roots in the folder are not a chain")?;
    let held = Held::read(&args.dir)?;
    let old_signers = held.signers(&old, "root")?;
    let online = args.online.as_deref().map(OnlinePublicKeys::load).transpose()?;

    let mut fresh = Vec::new();
    let root = next_root_keys(args, &old, &mut fresh)?;
    let new_targets_key = args.replace.contains(&Replace::Targets).then(SigningKey::generate).transpose()?;
    let role = |name| RoleKeys::of_root(&old, name);
    let content = RootContent {
        version: document::next_version("root", old.version())?,
        expires: expiry(now, days(args.days.root_days)),
        root,
        targets: new_targets_key.as_ref().map_or(role("targets"), |key| RoleKeys::one(key.public().clone())),
        snapshot: online.as_ref().map_or(role("snapshot"), |keys| RoleKeys::one(keys.snapshot.clone())),
        timestamp: online.as_ref().map_or(role("timestamp"), |keys| RoleKeys::one(keys.timestamp.clone())),
    };
    let signers: Vec<_> = old_signers.into_iter().chain(&fresh).collect();
    let mut new_chain = chain.clone();
    new_chain.push(document::root(&content, &signers)?);
    let root = verify_root_chain(&new_chain)?;

    let change = online.as_ref().and_then(|keys| delegate_to(&args.dir, &keys.channels, &chain));
    let targets_expire = expiry(now, days(args.days.targets_days));
    let targets =
        next_targets(&args.dir, &chain, &root, &held, new_targets_key.as_ref(), change, targets_expire)?;

    let mut files = Vec::new();
    for (stem, key) in
        fresh.iter().map(|key| ("root", key)).chain(new_targets_key.iter().map(|key| ("targets", key)))
    {
        let path = unused_key_path(&args.dir, stem)?;
        key.save(&path)?;
        files.push(path);
    }
    write_metadata(&args.dir, &root, targets.as_ref(), &mut files)?;
    Ok(Made { root, targets, files })
}

/// The keys of the next root role; those that are new go to `fresh`.
fn next_root_keys(args: &RotateArgs, old: &Verified<Root>, fresh: &mut Vec<SigningKey>) -> Result<RoleKeys> {
    let now = RoleKeys::of_root(old, "root");
    let replaces = args.replace.contains(&Replace::Root);
    ensure!(
        replaces || args.root_keys.is_none(),
        "--root-keys changes nothing here: expected --replace root with it"
    );
    let count = args.root_keys.map_or(now.keys.len(), usize::from);
    let threshold = args.threshold.map_or(now.threshold, usize::from);
    ensure!(
        threshold <= count,
        "--threshold {threshold} cannot be met: expected at most {count}, the number of root keys"
    );
    if !replaces {
        return Ok(RoleKeys { keys: now.keys, threshold });
    }
    for _ in 0..count {
        fresh.push(SigningKey::generate()?);
    }
    Ok(RoleKeys { keys: publics(fresh), threshold })
}

/// The change of targets that hands `channels/*` to a new server's key, unless that key is kept offline.
fn delegate_to(dir: &Path, key: &PublicKey, chain: &[Vec<u8>]) -> Option<TargetsChange> {
    let targets = newest_targets(dir, chain).ok()?;
    let already = targets.channels_key_ids() == [key.id()];
    let offline = dir.join(CHANNELS_FILE).exists();
    (!offline && !already).then(|| TargetsChange::Delegate { channels: RoleKeys::one(key.clone()) })
}

/// The folder's targets metadata, checked against the newest root of the chain that signed for it.
fn newest_targets(dir: &Path, chain: &[Vec<u8>]) -> Result<Verified<Targets>> {
    let bytes = folder::targets(dir)?;
    let mut refused = None;
    for end in (1..=chain.len()).rev() {
        let root = verify_root_chain(&chain[..end])?;
        match verify_targets_signatures(&bytes, &root) {
            Ok(targets) => return Ok(targets),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    match refused {
        Some(error) => Err(error).context("targets.json in the folder is not signed for any of its roots"),
        None => bail!("there is no root in {}: expected what `keys init` wrote", dir.display()),
    }
}

/// The next targets metadata, where the new root or a change asks for one.
fn next_targets(
    dir: &Path,
    chain: &[Vec<u8>],
    root: &Verified<Root>,
    held: &Held,
    new_key: Option<&SigningKey>,
    change: Option<TargetsChange>,
    expires: Timestamp,
) -> Result<Option<Verified<Targets>>> {
    let previous = newest_targets(dir, chain)?;
    if change.is_none() && verify_targets_signatures(previous.bytes(), root).is_ok() {
        return Ok(None);
    }
    let signers = match new_key {
        Some(key) => vec![key],
        None => held.signers(root, "targets")?,
    };
    let changes: Vec<_> = change.into_iter().collect();
    let bytes = document::next_targets(&previous, &changes, expires, &signers)?;
    Ok(Some(verify_targets_signatures(&bytes, root)?))
}

/// The private keys of a folder.
#[derive(Debug)]
struct Held {
    dir: PathBuf,
    keys: Vec<SigningKey>,
}

impl Held {
    fn read(dir: &Path) -> Result<Self> {
        let mut paths = Vec::new();
        for entry in
            std::fs::read_dir(dir).with_context(|| format!("cannot read the folder {}", dir.display()))?
        {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "pem") {
                paths.push(path);
            }
        }
        paths.sort();
        let keys = paths.iter().map(|path| SigningKey::load(path)).collect::<Result<_, _>>()?;
        Ok(Self { dir: dir.to_owned(), keys })
    }

    /// The keys that may sign for a role of `root`: enough to meet its threshold.
    fn signers(&self, root: &Root, role: &str) -> Result<Vec<&SigningKey>> {
        let ids = root.key_ids(role);
        let keys: Vec<_> = self.keys.iter().filter(|key| ids.iter().any(|id| id == key.id())).collect();
        ensure!(
            keys.len() >= root.threshold(role),
            "{} holds too few {role} keys of root version {}: expected {}, found {}; bring the key files together there",
            self.dir.display(),
            root.version(),
            root.threshold(role),
            keys.len()
        );
        Ok(keys)
    }
}

/// The first free file name for a key: `root.pem`, `root-2.pem`, …
fn unused_key_path(dir: &Path, stem: &str) -> Result<PathBuf> {
    let name = |n: u32| if n == 1 { format!("{stem}.pem") } else { format!("{stem}-{n}.pem") };
    (1..10_000)
        .map(|n| dir.join(name(n)))
        .find(|path| !path.exists())
        .with_context(|| format!("no file name is left for a {stem} key in {}", dir.display()))
}

#[cfg(test)]
mod tests;
