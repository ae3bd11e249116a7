//! The peer: curl, zstd and dd, which check after the write, over HTTP from the same machine.

use crate::measure::{Cost, drop_caches, timed, warm};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::process::run;

/// Serves one file to whoever asks, by sendfile, for as long as the process lives.
pub(crate) fn serve_file(file: PathBuf) -> Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = format!("http://{}/", listener.local_addr()?);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that hangs up is its own business.
            let _ = answer(stream, &file);
        }
    });
    Ok(address)
}

fn answer(mut stream: TcpStream, file: &Path) -> Result<()> {
    for line in BufReader::new(&stream).lines() {
        if line?.is_empty() {
            break;
        }
    }
    let mut file = File::open(file)?;
    let length = file.metadata()?.len();
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n")?;
    std::io::copy(&mut file, &mut stream)?;
    Ok(())
}

/// One `zstd -19` stream of an image, made once.
pub(crate) fn zstd_stream(work: &Path, image: &Path) -> Result<PathBuf> {
    let name = image.file_name().context("an image without a name")?.to_string_lossy().into_owned();
    let stream = work.join(format!("{name}.zst"));
    if !stream.exists() {
        let partial = work.join(format!("{name}.zst.partial"));
        eprintln!("making {} (minutes) ...", stream.display());
        let mut command = Command::new("zstd");
        command.args(["-q", "-f", "-19", "-T0"]).arg(image).arg("-o").arg(&partial);
        run(&mut command)?.ok()?;
        std::fs::rename(partial, &stream)?;
    }
    Ok(stream)
}

/// curl, zstd -d, dd with direct I/O; then the device is read back and its SHA-256 compared, if asked for.
pub(crate) fn curl_zstd_dd(
    work: &Path,
    stream: &Path,
    url: &str,
    device: &Path,
    read_back: Option<(&str, u64)>,
) -> Result<Cost> {
    drop_caches()?;
    warm(stream)?;
    let device = device.display();
    let mut script = format!(
        "set -o pipefail; curl -sf {url} | zstd -q -d -c | dd of={device} bs=4M oflag=direct iflag=fullblock conv=fsync status=none"
    );
    if let Some((sum, length)) = read_back {
        script.push_str(&format!(
            " && dd if={device} bs=4M iflag=direct,count_bytes count={length} status=none | openssl dgst -sha256 | grep -q {sum}"
        ));
    }
    timed(work, Command::new("bash").args(["-c", &script]))
}
