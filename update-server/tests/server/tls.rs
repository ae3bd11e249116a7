//! TLS: certificates of the server and of clients, files that are wrong and files that change, and what nodes and operators
//! need to be told about an authority of one's own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at the first thing that does not work"
)]

use crate::common;

use common::check;
use common::listening::{Listening, token};
use protocol::status::Exit;
use protocol::wire::Decision;
use reqwest::{Certificate, Identity, StatusCode};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tests::etcd::Certificates;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use update_engine::config::{Merged, Settings, fragment::Fragment};
use update_engine::network;
use update_engine::operator::{self, OperatorCommand, OperatorError, ServerOptions};
use update_server::listen::Limits;
use update_server::tls::{ClientCertificate, Files, Tls};

/// A folder with an authority and its certificates.
struct Authority {
    _dir: TempDir,
    files: Certificates,
}

impl Authority {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let files = Certificates::make(dir.path()).unwrap();
        Self { _dir: dir, files }
    }

    fn server(&self, clients: Option<(&Self, ClientCertificate)>) -> Files {
        let (certificate, key) = self.files.member.clone();
        let clients = clients.map(|(authority, need)| (authority.files.ca.clone(), need));
        Files { certificate, key, clients }
    }

    /// A client that believes this authority only, and shows a certificate if it has one.
    fn client(&self, shown: Option<&Self>) -> reqwest::Client {
        let ca = Certificate::from_pem(&std::fs::read(&self.files.ca).unwrap()).unwrap();
        let mut builder = reqwest::Client::builder().tls_certs_only([ca]);
        if let Some(shown) = shown {
            let (certificate, key) = &shown.files.client;
            let pem = [std::fs::read(certificate).unwrap(), std::fs::read(key).unwrap()].concat();
            builder = builder.identity(Identity::from_pem(&pem).unwrap());
        }
        builder.build().unwrap()
    }
}

async fn start(files: Files) -> Listening {
    Listening::start(Some(Tls::open(files).unwrap()), Limits::default()).await
}

/// The status of `/healthz`; none where there is no connection.
async fn health(client: &reqwest::Client, address: &str) -> Option<StatusCode> {
    client.get(format!("https://{address}/healthz")).send().await.ok().map(|response| response.status())
}

#[tokio::test]
async fn a_certificate_is_checked_and_http_2_is_spoken() {
    let (ours, others) = (Authority::new(), Authority::new());
    let server = start(ours.server(None)).await;
    let answer = ours.client(None).get(format!("https://{}/healthz", server.address)).send().await.unwrap();
    assert_eq!((answer.status(), answer.version()), (StatusCode::OK, reqwest::Version::HTTP_2));
    assert_eq!(health(&others.client(None), &server.address).await, None, "of another authority");
    let plain = reqwest::get(format!("http://{}/healthz", server.address)).await;
    assert!(plain.is_err(), "nothing is said without TLS");
    server.end().await;
}

#[tokio::test]
async fn clients_may_or_must_show_a_certificate_of_the_authority() {
    let (ours, fleet, others) = (Authority::new(), Authority::new(), Authority::new());
    for (need, without) in
        [(ClientCertificate::Optional, Some(StatusCode::OK)), (ClientCertificate::Required, None)]
    {
        let server = start(ours.server(Some((&fleet, need)))).await;
        assert_eq!(health(&ours.client(Some(&fleet)), &server.address).await, Some(StatusCode::OK));
        assert_eq!(health(&ours.client(None), &server.address).await, without, "{need}");
        assert_eq!(
            health(&ours.client(Some(&others)), &server.address).await,
            None,
            "{need}: of another one"
        );
        server.end().await;
    }
}

#[tokio::test]
async fn garbage_instead_of_tls_harms_nobody() {
    let ours = Authority::new();
    let limits = Limits { handshake: Duration::from_millis(200), ..Limits::default() };
    let server = Listening::start(Some(Tls::open(ours.server(None)).unwrap()), limits).await;
    let mut silent = TcpStream::connect(&server.address).await.unwrap();
    for garbage in
        [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0x16, 0x03, 0x01, 0xff, 0xff], &[0xff; 40_000]]
    {
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        // It may have hung up before everything is written.
        drop(stream.write_all(garbage).await);
        let mut said = Vec::new();
        drop(stream.read_to_end(&mut said).await);
        // An alert at most.
        assert!(said.len() < 16, "{said:?}");
    }
    // Who says nothing is left alone after a while: this ends.
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(health(&ours.client(None), &server.address).await, Some(StatusCode::OK));
    server.end().await;
}

#[test]
fn keys_of_every_usual_form_are_taken() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str| dir.path().join(name);
    let openssl = |args: &[&str]| {
        let output = Command::new("openssl").args(args).current_dir(dir.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let new = [
        "req",
        "-x509",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=x",
        "-keyout",
        "pkcs8.key",
        "-out",
        "cert.pem",
    ];
    for (kind, converted) in [
        (&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"][..], &["ec"][..]),
        (&["-newkey", "rsa:2048"], &["rsa", "-traditional"]),
    ] {
        openssl(&[&new[..], kind].concat());
        openssl(&[converted, &["-in", "pkcs8.key", "-out", "old.key"]].concat());
        for key in ["pkcs8.key", "old.key"] {
            let text = std::fs::read_to_string(file(key)).unwrap();
            assert_eq!(text.contains("BEGIN PRIVATE KEY"), key == "pkcs8.key", "{kind:?}: {text}");
            let files = Files { certificate: file("cert.pem"), key: file(key), clients: None };
            Tls::open(files).unwrap();
        }
    }
}

/// As plain `openssl x509 -req` makes them: of version 1. The file is named, and that it is no matter of the server's.
#[tokio::test]
async fn a_certificate_that_cannot_be_shown_is_named() {
    let dir = TempDir::new().unwrap();
    for command in [
        "req -new -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -subj /CN=eva -keyout eva.key -out eva.csr",
        "x509 -req -in eva.csr -signkey eva.key -days 2 -out eva.pem",
    ] {
        let output =
            Command::new("openssl").args(command.split(' ')).current_dir(dir.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let file = |name: &str| dir.path().join(name);
    let options = ServerOptions {
        server: Some("https://127.0.0.1:1".to_owned()),
        token: Some("t".to_owned()),
        ca: None,
        client_cert: Some(file("eva.pem").into()),
        client_key: Some(file("eva.key").into()),
    };
    let audit = OperatorCommand::Audit { limit: 1, before: None };
    let error = update_engine::error::chain(&operator::run(audit, &options, true).await.unwrap_err());
    let says = format!("{} does not hold a certificate that can be shown", file("eva.pem").display());
    assert!(error.starts_with(&says) && !error.contains("peer"), "{error}");
    assert!(error.contains("UnsupportedCertVersion"), "{error}");
}

/// The real program on a folder of its own.
struct Program {
    dir: TempDir,
    child: Child,
    address: String,
}

fn program(srv: &Path, files: &[(&str, &Path)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_update-server"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(srv);
    for (option, path) in files {
        command.arg(option).arg(path);
    }
    command.env_remove("RUST_LOG").env_remove("UPDATE_SERVER_DATABASE_URL");
    command
}

fn init(srv: &Path) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_update-server"));
    command.args(["init", "--data-dir"]).arg(srv).env_remove("UPDATE_SERVER_DATABASE_URL");
    assert!(command.output().unwrap().status.success());
}

impl Program {
    fn start(files: &[(&str, &Path)]) -> Self {
        let dir = TempDir::new().unwrap();
        let srv = dir.path().join("srv");
        init(&srv);
        let mut child = program(&srv, files).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on https://").expect("https").to_owned();
        Self { dir, child, address }
    }

    /// Has it read its files anew, and waits for what it says of that.
    fn hang_up(&mut self, log: &mut impl Iterator<Item = String>, saying: &str) {
        let killed = Command::new("kill").args(["-HUP", &self.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        assert!(log.any(|line| line.contains(saying)), "the log ended without {saying:?}");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test]
async fn new_files_are_taken_up_and_bad_ones_are_not() {
    let (ours, others, used) = (Authority::new(), Authority::new(), TempDir::new().unwrap());
    let (certificate, key) = (used.path().join("cert.pem"), used.path().join("key.pem"));
    let put = |(from_certificate, from_key): &(PathBuf, PathBuf)| {
        std::fs::copy(from_certificate, &certificate).unwrap();
        std::fs::copy(from_key, &key).unwrap();
    };
    put(&ours.files.member);
    let mut server = Program::start(&[("--tls-cert", &certificate), ("--tls-key", &key)]);
    let mut log = BufReader::new(server.child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(health(&ours.client(None), &server.address).await, Some(StatusCode::OK));

    put(&others.files.member);
    server.hang_up(&mut log, "was read anew");
    assert_eq!(health(&others.client(None), &server.address).await, Some(StatusCode::OK));
    assert_eq!(health(&ours.client(None), &server.address).await, None);

    // Half of a change, as one that copies two files is for a moment.
    std::fs::copy(&ours.files.member.0, &certificate).unwrap();
    server.hang_up(&mut log, "the one from before is used on");
    std::fs::write(&certificate, "nonsense").unwrap();
    server.hang_up(&mut log, "does not hold the TLS certificate");
    std::fs::remove_file(&certificate).unwrap();
    server.hang_up(&mut log, "cannot read");
    assert_eq!(health(&others.client(None), &server.address).await, Some(StatusCode::OK));

    put(&ours.files.member);
    server.hang_up(&mut log, "was read anew");
    assert_eq!(health(&ours.client(None), &server.address).await, Some(StatusCode::OK));
}

fn one_line(output: &Output) -> String {
    let line = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(output.stdout.is_empty());
    assert!(line.starts_with("update-server: ") && line.trim_end().lines().count() == 1, "{line}");
    line
}

#[test]
fn wrong_files_at_the_start_are_told_in_one_line() {
    let (ours, others, dir) = (Authority::new(), Authority::new(), TempDir::new().unwrap());
    let srv = dir.path().join("srv");
    init(&srv);
    let nonsense = dir.path().join("nonsense.pem");
    std::fs::write(&nonsense, "nonsense").unwrap();
    let (certificate, key) = (&*ours.files.member.0, &*ours.files.member.1);
    let absent = &*dir.path().join("absent.pem");
    for (files, saying) in [
        (&[("--tls-cert", certificate)][..], "expected --tls-key too"),
        (&[("--tls-key", key)], "expected --tls-cert too"),
        (&[("--client-ca", certificate)], "expected --tls-cert and --tls-key too"),
        (&[("--tls-cert", absent), ("--tls-key", key)], "absent.pem, the TLS certificate: No such file"),
        (&[("--tls-cert", certificate), ("--tls-key", absent)], "absent.pem, the TLS key: No such file"),
        (&[("--tls-cert", &nonsense), ("--tls-key", key)], "expected certificates in PEM, found none"),
        (&[("--tls-cert", key), ("--tls-key", key)], "expected certificates in PEM, found none"),
        (&[("--tls-cert", certificate), ("--tls-key", certificate)], "expected a private key (PKCS #8"),
        (&[("--tls-cert", certificate), ("--tls-key", &others.files.member.1)], "cannot be used: "),
        (
            &[("--tls-cert", certificate), ("--tls-key", key), ("--client-ca", &nonsense)],
            "expected certificates in PEM, found none",
        ),
    ] {
        let line = one_line(&program(&srv, files).output().unwrap());
        assert!(line.contains(saying), "{files:?}: {line}");
    }
    let mut unsigned = program(&srv, &[("--tls-cert", certificate), ("--tls-key", key)]);
    let line = one_line(&unsigned.args(["--client-cert", "required"]).output().unwrap());
    assert!(line.contains("expected --client-ca too"), "{line}");
}

/// A node's configuration.
fn settings(server: &str) -> Settings {
    let text = format!("[server]\n{server}\n[identity]\nchannel = \"stable\"\n[download]\nretries = 0\n");
    let fragment = Fragment::parse(Path::new("/etc/node.toml"), &text).unwrap();
    Settings::from_merged(&Merged::from_fragments([fragment])).unwrap()
}

#[tokio::test]
async fn a_node_and_an_operator_reach_a_server_of_an_authority_of_their_own() {
    let (ours, fleet) = (Authority::new(), Authority::new());
    let server = Program::start(&[
        ("--tls-cert", &ours.files.member.0),
        ("--tls-key", &ours.files.member.1),
        ("--client-ca", &fleet.files.ca),
        ("--client-cert", Path::new("required")),
    ]);
    let (certificate, key) = &fleet.files.client;
    let url = format!("url = \"https://{}\"\n", server.address);
    let ca = format!("{url}ca = {:?}\n", ours.files.ca);
    let whole = settings(&format!("{ca}cert = {certificate:?}\nkey = {key:?}"));
    let node = |settings: &Settings| {
        network::Client::new(&settings.server, settings.download.clone()).map(network::Client::asking_once)
    };
    let answer = node(&whole).unwrap().update_check(&check("stable", "1.0.0")).await.unwrap();
    assert_eq!(answer.decision, Decision::None, "{}", answer.reason);
    for part in [&url, &ca] {
        let failed = node(&settings(part)).unwrap().update_check(&check("stable", "1.0.0")).await;
        assert!(failed.unwrap_err().is_passing(), "{part}");
    }
    let wrong = settings(&format!("{url}ca = {key:?}"));
    let error = update_engine::error::chain(&node(&wrong).unwrap_err());
    assert!(error.contains("certificates of authorities in PEM"), "{error}");

    let options = ServerOptions {
        server: Some(format!("https://{}", server.address)),
        token: Some(token(&server.dir.path().join("srv"))),
        ca: Some(ours.files.ca.clone().into()),
        client_cert: Some(certificate.into()),
        client_key: Some(key.into()),
    };
    let audit = || OperatorCommand::Audit { limit: 1, before: None };
    assert_eq!(operator::run(audit(), &options, true).await.unwrap(), Exit::Done);
    for (options, usage) in [
        (ServerOptions { ca: None, ..options.clone() }, false),
        (ServerOptions { client_cert: None, client_key: None, ..options.clone() }, false),
        (ServerOptions { client_key: None, ..options.clone() }, true),
    ] {
        let error = operator::run(audit(), &options, true).await.unwrap_err();
        assert_eq!(matches!(error, OperatorError::HalfAnIdentity), usage, "{error}");
        assert_eq!(matches!(error, OperatorError::Unreachable { .. }), !usage, "{error}");
    }
}
