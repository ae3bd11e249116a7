//! Nodes that ask, with as little work of their own as there can be: requests are made once, and answers are not parsed.

use anyhow::{Context as _, Result, ensure};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Who asks for what.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) address: String,
    pub(crate) channel: &'static str,
    pub(crate) version: &'static str,
    /// What each answer must say.
    pub(crate) decision: &'static str,
    pub(crate) nodes: u32,
    pub(crate) connections: usize,
    /// Checks per second of all together; none is as many as are answered.
    pub(crate) rate: Option<f64>,
}

/// How long each check took, from the moment that it was due.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    pub(crate) latencies: Vec<Duration>,
}

/// Which node asks next; goes on from run to run.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Asks for a time.
pub(crate) fn run(load: &Load, span: Duration) -> Result<Samples> {
    let began = Instant::now();
    let workers: Vec<_> = (0..load.connections)
        .map(|number| {
            let load = load.clone();
            thread::spawn(move || worker(&load, number, began, span))
        })
        .collect();
    let mut samples = Samples::default();
    for worker in workers {
        let latencies = worker.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        samples.latencies.extend(latencies);
    }
    Ok(samples)
}

fn worker(load: &Load, number: usize, began: Instant, span: Duration) -> Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(&load.address)?;
    stream.set_nodelay(true)?;
    let (mut latencies, mut answer) = (Vec::new(), Vec::new());
    // With a rate, each connection has a time-table of its own, and a check that is late counts from when it was due.
    let pause = load.rate.map(|rate| Duration::from_secs_f64(load.connections as f64 / rate));
    let mut due = pause.map(|pause| began + pause.mul_f64(number as f64 / load.connections as f64));
    loop {
        if let Some(due) = due {
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let from = due.unwrap_or_else(Instant::now);
        if began.elapsed() >= span {
            return Ok(latencies);
        }
        ask(load, &mut stream, &mut answer)?;
        latencies.push(from.elapsed());
        due = due.zip(pause).map(|(due, pause)| due + pause);
    }
}

fn ask(load: &Load, stream: &mut TcpStream, answer: &mut Vec<u8>) -> Result<()> {
    let node = NEXT.fetch_add(1, Ordering::Relaxed) % load.nodes;
    let body = format!(
        "{{\"schema\":1,\"node\":\"{node:032x}\",\"channel\":\"{}\",\"group\":\"web\",\"arch\":\"x86-64\",\"version\":\"{}\",\
         \"slot\":\"A\",\"boot_id\":\"6f1a3c52-0000-4000-8000-{node:012x}\",\"state\":\"idle\"}}",
        load.channel, load.version
    );
    let head =
        format!("POST /v1/update-check HTTP/1.1\r\nHost: bench\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all([head, body].concat().as_bytes())?;
    answer.clear();
    let mut piece = [0; 4096];
    loop {
        let length = stream.read(&mut piece)?;
        ensure!(length > 0, "the server ended the connection");
        answer.extend_from_slice(&piece[..length]);
        let Some(head) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let text = std::str::from_utf8(&answer[..head])?;
        let length = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .context("an answer without a length")?;
        let length: usize = length.1.trim().parse()?;
        if answer.len() < head + 4 + length {
            continue;
        }
        let body = std::str::from_utf8(&answer[head + 4..])?;
        let wanted = format!("\"decision\":\"{}\"", load.decision);
        ensure!(
            text.starts_with("HTTP/1.1 200") && body.contains(&wanted),
            "expected {wanted}, found {text}\n{body}"
        );
        return Ok(());
    }
}
