//! All steps: the whole story on disks and images that this program makes itself, with the real programs, without
//! root and without any other package. Each line that it prints is something that was just done and checked.

mod story;
mod summary;

use anyhow::Result;
use clap::Parser;
use std::process::ExitCode;
use story::Story;
use tests::programs::Programs;

/// Updates, boots, confirms, resumes, falls back, quarantines and refuses, all on files in a temporary folder.
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Arguments {
    /// Ends with the summary as one JSON object on the last line.
    #[arg(long)]
    json: bool,
    /// Keeps the folder with the disks, keys, releases and logs, and says where it is.
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match demo(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(arguments: &Arguments) -> Result<bool> {
    let started = std::time::Instant::now();
    println!("Building the server, the engine and the tools (the first time takes a while) ...");
    let programs = Programs::build()?;
    let mut folder = tempfile::Builder::new().prefix("flipside-demo-").tempdir()?;
    folder.disable_cleanup(arguments.keep);
    println!("Everything happens in {}.", folder.path().display());
    let mut story = Story::begin(programs, folder.path())?;
    let told = story.tell();
    let summary = story.end();
    if let Err(error) = &told {
        eprintln!("demo: {error:#}");
    }
    if arguments.keep {
        println!("Kept: {}", folder.path().display());
    }
    println!();
    println!("{summary}");
    println!("{} s.", started.elapsed().as_secs());
    if arguments.json {
        println!("{}", serde_json::to_string(&summary)?);
    }
    folder.close()?;
    Ok(told.is_ok() && summary.is_complete())
}
