//! Where the real programs are: builds them with the profile of the caller and asks cargo where it put them.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Set by `tests/run` to a folder that holds all programs, so that not every test asks cargo again.
pub const FOLDER_VARIABLE: &str = "FLIPSIDE_PROGRAMS";

/// The programs that this repository delivers.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The server.
    pub update_server: PathBuf,
    /// The node's engine.
    pub update_engine: PathBuf,
    /// The operator's and the node's command line.
    pub updatectl: PathBuf,
    /// The image builder's command line.
    pub image_tools: PathBuf,
}

/// The lines of `cargo build --message-format json` that matter here.
#[derive(Deserialize)]
struct Message {
    reason: String,
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

impl Programs {
    /// Takes the programs from the folder that [`FOLDER_VARIABLE`] names, or builds them.
    ///
    /// # Errors
    /// Where one is missing from that folder, or does not build.
    pub fn find() -> Result<Self> {
        match std::env::var_os(FOLDER_VARIABLE) {
            Some(folder) => Self::in_folder(Path::new(&folder)),
            None => Self::build(),
        }
    }

    fn in_folder(folder: &Path) -> Result<Self> {
        let program = |name: &str| {
            let path = folder.join(name);
            if path.is_file() {
                Ok(path)
            } else {
                bail!(
                    "{FOLDER_VARIABLE} names {}, which holds no {name}: build the workspace first",
                    folder.display()
                )
            }
        };
        Ok(Self {
            update_server: program("update-server")?,
            update_engine: program("update-engine")?,
            updatectl: program("updatectl")?,
            image_tools: program("image-tools")?,
        })
    }

    /// Builds the programs with the profile and into the target folder of the running program. Does nothing but ask
    /// cargo where nothing changed.
    ///
    /// # Errors
    /// Where they do not build; cargo's own messages are on stderr by then.
    pub fn build() -> Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command
            .current_dir(workspace())
            .args(["build", "--quiet", "--message-format", "json-render-diagnostics", "--bins"])
            .args(["--package", "update-server", "--package", "update-engine", "--package", "image-tools"]);
        if let Some((target_dir, profile)) = own_build() {
            command.arg("--target-dir").arg(target_dir).arg("--profile").arg(profile);
        }
        let output = command
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("cargo cannot be started, and it is what builds the programs")?;
        if !output.status.success() {
            bail!("the programs do not build: {} ended with {}", "cargo build", output.status);
        }
        let mut found = HashMap::new();
        for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let message: Message = serde_json::from_slice(line).context("cargo's messages are not JSON")?;
            if let (Some(executable), Some(target)) = (message.executable, message.target)
                && message.reason == "compiler-artifact"
            {
                found.insert(target.name, executable);
            }
        }
        let mut take = |name: &str| found.remove(name).with_context(|| format!("cargo built no {name}"));
        Ok(Self {
            update_server: take("update-server")?,
            update_engine: take("update-engine")?,
            updatectl: take("updatectl")?,
            image_tools: take("image-tools")?,
        })
    }
}

/// The workspace's folder.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The target folder and profile that the running program was built with, by where it lies:
/// `TARGET/debug/demo` or `TARGET/debug/deps/test-0123`.
fn own_build() -> Option<(PathBuf, String)> {
    let executable = std::env::current_exe().ok()?;
    let mut folder = executable.parent()?;
    if folder.ends_with("deps") || folder.ends_with("examples") {
        folder = folder.parent()?;
    }
    let profile = match folder.file_name()?.to_str()? {
        "debug" => "dev",
        name => name,
    };
    Some((folder.parent()?.to_owned(), profile.to_owned()))
}
