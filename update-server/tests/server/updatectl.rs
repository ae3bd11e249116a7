//! Steps 3 and 4: `updatectl` against a server: what it signs, what it sends twice, and what it refuses to sign on.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that does not work")]

use crate::common;

use clap::Parser;
use common::{Operator, Release, Server};
use jiff::Timestamp;
use protocol::status::Exit;
use protocol::wire::{AuditLog, ChannelList, ReleaseList, RolloutInfo};
use std::path::PathBuf;
use tempfile::TempDir;
use update_engine::operator::{self, OperatorCommand, OperatorError, ServerOptions};

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: OperatorCommand,
}

/// An operator's folders, and the server that `updatectl` is told to speak to.
struct Desk {
    dir: TempDir,
    options: ServerOptions,
}

impl Desk {
    /// A folder `keys` as image-tools keys init makes it.
    fn new(server: &Server) -> Self {
        let dir = TempDir::new().unwrap();
        let keys = dir.path().join("keys");
        std::fs::create_dir(&keys).unwrap();
        let operator = Operator::new(&server.dir.path().join("srv"), server.now());
        operator.root_key.save(&keys.join("root.pem")).unwrap();
        operator.targets_key.save(&keys.join("targets.pem")).unwrap();
        std::fs::write(keys.join("root.json"), operator.root.bytes()).unwrap();
        std::fs::write(keys.join("1.root.json"), operator.root.bytes()).unwrap();
        std::fs::write(keys.join("targets.json"), operator.targets.bytes()).unwrap();
        let options = ServerOptions {
            server: Some(server.url.clone()),
            token: server.admin().token,
            ..ServerOptions::default()
        };
        Self { dir, options }
    }

    /// The same server at another address.
    fn moved_to(mut self, server: &Server) -> Self {
        self.options.server = Some(server.url.clone());
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A release folder as image-tools release build makes it.
    fn build(&self, version: &str) -> Release {
        let release = Release::new(version, None);
        let folder = self.path(version);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("manifest.json"), &release.bytes).unwrap();
        let payload = format!("{}.payload", release.manifest.payloads[0].sha256);
        std::fs::write(folder.join(payload), &release.payload).unwrap();
        release
    }

    /// Runs `updatectl` with a command line in which `@name` is a path in the folder.
    async fn run(&self, line: &str) -> Result<Exit, OperatorError> {
        let args = line.split(' ').map(|arg| match arg.strip_prefix('@') {
            Some(name) => self.path(name).into_os_string(),
            None => arg.into(),
        });
        let cli = Cli::try_parse_from(std::iter::once("updatectl".into()).chain(args)).unwrap();
        operator::run(cli.command, &self.options, true).await
    }

    async fn ok(&self, line: &str) {
        assert_eq!(self.run(line).await.unwrap(), Exit::Done, "{line}");
    }

    async fn nothing_to_do(&self, line: &str) {
        assert_eq!(self.run(line).await.unwrap(), Exit::NothingToDo, "{line}");
    }

    async fn fails(&self, line: &str, exit: Exit, saying: &str) {
        let error = self.run(line).await.unwrap_err();
        let text = update_server::error::chain(&error);
        assert!(text.contains(saying) && !text.contains('\n'), "{line}: {text}");
        assert_eq!(error.exit(), exit, "{text}");
    }
}

const PUSH: &str = "release push @1.1.0 --key @keys/targets.pem";

/// `updatectl` signs by the real clock, so the server's starts there.
async fn server() -> Server {
    Server::start_at(Timestamp::now()).await
}

#[tokio::test]
async fn an_operators_first_hour() {
    let server = server().await;
    let desk = Desk::new(&server);
    let release = desk.build("1.1.0");
    desk.fails(PUSH, Exit::Failed, "root push").await;
    desk.ok("root push @keys").await;
    desk.nothing_to_do("root push @keys").await;
    desk.fails("channel set alpha 1.1.0", Exit::Failed, "there is no release 1.1.0").await;
    desk.ok(PUSH).await;
    desk.nothing_to_do(PUSH).await;
    desk.nothing_to_do("root push @keys").await;
    desk.ok("channel set alpha 1.1.0").await;
    desk.nothing_to_do("channel set alpha 1.1.0").await;
    desk.ok("channel promote alpha beta").await;
    desk.nothing_to_do("channel promote alpha beta").await;
    desk.fails("channel promote gamma beta", Exit::Failed, "gamma points at no release").await;
    for list in ["release list", "channel list", "node list", "audit"] {
        desk.ok(list).await;
    }
    let admin = server.admin();
    assert_eq!(admin.check("beta", "1.0.0").await.version, Some(release.manifest.version.clone()));
    assert_eq!(admin.read::<ChannelList>("/api/v1/channels").await.channels.len(), 2);
    let uploads = admin.read::<AuditLog>("/api/v1/audit").await.entries;
    assert_eq!(uploads.iter().filter(|entry| entry.action == "payload.upload").count(), 1);

    desk.fails("release withdraw 1.1.0 --key @keys/targets.pem", Exit::Failed, "alpha needs").await;
    desk.nothing_to_do("release withdraw 1.0.9 --key @keys/targets.pem").await;
    desk.build("1.2.0");
    desk.ok("release push @1.2.0 --key @keys/targets.pem").await;
    desk.ok("channel set alpha 1.2.0").await;
    desk.ok("channel set beta 1.2.0").await;
    desk.ok("release withdraw 1.1.0 --key @keys/targets.pem").await;
    desk.ok("release renew --key @keys/targets.pem").await;
    let releases = admin.read::<ReleaseList>("/api/v1/releases").await.releases;
    assert_eq!(releases.len(), 1);
    let newest = admin.get("/v1/metadata/5.targets.json").await.bytes().await.unwrap();
    assert_eq!(std::fs::read(desk.path("keys/targets.json")).unwrap(), newest, "kept for keys rotate");
}

#[tokio::test]
async fn a_downgrade_is_allowed_by_signature_and_stays_allowed() {
    let server = server().await;
    let desk = Desk::new(&server);
    desk.build("1.1.0");
    desk.ok("root push @keys").await;
    desk.ok(PUSH).await;
    desk.ok("channel set alpha 1.1.0").await;
    let admin = server.admin();
    assert_eq!(admin.check("alpha", "1.2.0").await.version, None);
    desk.ok(&format!("{PUSH} --allow-downgrade-from 1.2.0")).await;
    desk.nothing_to_do(PUSH).await;
    assert_eq!(admin.check("alpha", "1.2.0").await.version.unwrap().as_str(), "1.1.0");
    assert_eq!(admin.check("alpha", "1.3.0").await.version, None);
}

#[tokio::test]
async fn a_dead_end_is_marked_and_cleared() {
    let server = server().await;
    let (desk, admin) = (Desk::new(&server), server.admin());
    desk.ok("root push @keys").await;
    desk.build("1.1.0");
    desk.ok(PUSH).await;
    desk.build("1.2.0");
    desk.ok("release push @1.2.0 --key @keys/targets.pem").await;
    desk.ok("channel set alpha 1.1.0").await;
    admin.check("alpha", "1.1.0").await;
    let ends = async || -> Vec<(String, Option<String>)> {
        let list = admin.read::<ReleaseList>("/api/v1/releases").await;
        list.releases.into_iter().map(|release| (release.version.to_string(), release.dead_end)).collect()
    };
    const MARK: &str = "release dead-end 1.1.0 --reason=broken --key @keys/targets.pem";
    const CLEAR: &str = "release dead-end 1.1.0 --clear --key @keys/targets.pem";
    desk.nothing_to_do(CLEAR).await;
    desk.ok(MARK).await;
    desk.nothing_to_do(MARK).await;
    let marked = |why: &str| vec![("1.2.0".to_owned(), None), ("1.1.0".to_owned(), Some(why.to_owned()))];
    assert_eq!(ends().await, marked("broken"));
    desk.ok(&MARK.replace("broken", "worse")).await;
    assert_eq!(ends().await, marked("worse"));
    desk.nothing_to_do(
        &format!("{MARK} --arch arm64")
            .replace("dead-end 1.1.0", "dead-end 1.1.0 --clear")
            .replace(" --reason=broken", ""),
    )
    .await;
    desk.fails(&format!("{MARK} --arch arm64"), Exit::Failed, "no release 1.1.0 for arm64").await;
    desk.fails(&MARK.replace("1.1.0", "9.0.0"), Exit::Failed, "the server has no release 9.0.0").await;
    // What is pushed again says the same as before.
    desk.nothing_to_do(PUSH).await;
    desk.fails("release withdraw 1.1.0 --key @keys/targets.pem", Exit::Failed, "--clear").await;
    desk.ok("release renew --key @keys/targets.pem").await;
    assert_eq!(ends().await, marked("worse"));

    desk.ok("channel set alpha 1.2.0").await;
    desk.fails("channel set beta 1.1.0", Exit::Failed, "insist with --to-dead-end").await;
    desk.ok("channel set beta 1.1.0 --to-dead-end").await;
    desk.nothing_to_do("channel set beta 1.1.0 --to-dead-end").await;
    desk.nothing_to_do("channel set alpha 1.2.0 --to-dead-end").await;
    desk.fails("channel promote beta gamma", Exit::Failed, "insist with --to-dead-end").await;
    desk.ok("channel promote beta gamma --to-dead-end").await;
    for line in ["release list", "channel list", "node list", "rollout show alpha"] {
        desk.ok(line).await;
    }
    desk.ok(CLEAR).await;
    assert!(ends().await.iter().all(|(_, end)| end.is_none()));

    desk.build("1.3.0");
    desk.ok("release push @1.3.0 --dead-end=last --key @keys/targets.pem").await;
    assert_eq!(ends().await[0], ("1.3.0".to_owned(), Some("last".to_owned())));
    for wrong in [
        "release dead-end 1.3.0 --key k",
        "release dead-end 1.3.0 --reason= --key k",
        "release dead-end 1.3.0 --reason=a --clear --key k",
    ] {
        assert!(
            Cli::try_parse_from(std::iter::once("updatectl").chain(wrong.split(' '))).is_err(),
            "{wrong}"
        );
    }
}

#[tokio::test]
async fn a_release_folder_is_checked_before_anything_is_signed() {
    let server = server().await;
    let desk = Desk::new(&server);
    desk.ok("root push @keys").await;
    let release = desk.build("1.1.0");
    let payload = desk.path("1.1.0").join(format!("{}.payload", release.manifest.payloads[0].sha256));

    let mut damaged = release.payload.clone();
    damaged[1000] ^= 1;
    std::fs::write(&payload, &damaged).unwrap();
    desk.fails(PUSH, Exit::Failed, "the sha256 of the file is").await;
    std::fs::write(&payload, &damaged[1..]).unwrap();
    desk.fails(PUSH, Exit::Failed, "bytes long: expected").await;
    std::fs::remove_file(&payload).unwrap();
    desk.fails(PUSH, Exit::Failed, "cannot use").await;
    std::fs::write(&payload, &release.payload).unwrap();

    desk.fails("release push @nowhere --key @keys/targets.pem", Exit::Failed, "manifest.json").await;
    desk.fails("release push @1.1.0 --key @keys/root.pem", Exit::Failed, "may not sign releases").await;
    desk.fails("release push @1.1.0 --key @keys/none.pem", Exit::Failed, "cannot sign with").await;
    desk.fails(&format!("{PUSH} --root @none.json"), Exit::Failed, "none.json").await;
    assert!(server.admin().read::<ReleaseList>("/api/v1/releases").await.releases.is_empty());
    let log = server.admin().read::<AuditLog>("/api/v1/audit").await;
    assert!(!log.entries.iter().any(|entry| entry.action == "payload.upload"), "nothing was sent");

    desk.ok(PUSH).await;
    let mut rebuilt = release;
    rebuilt.manifest.notes = "rebuilt".to_owned();
    let bytes = serde_json::to_vec(&rebuilt.manifest).unwrap();
    std::fs::write(desk.path("1.1.0/manifest.json"), bytes).unwrap();
    desk.fails(PUSH, Exit::Failed, "a release never changes").await;
}

/// What is told to be typed can be typed.
#[tokio::test]
async fn commands_about_rollouts_as_the_screen_names_them() {
    let server = server().await;
    let desk = Desk::new(&server);
    desk.ok("root push @keys").await;
    desk.build("1.1.0");
    desk.ok(PUSH).await;
    std::fs::write(
        desk.path("policy.toml"),
        "[channel.alpha]\nwaves = [{ share = \"1%\", approve = true }, { share = \"100%\" }]\n",
    )
    .unwrap();
    desk.ok("rollout set @policy.toml --yes").await;
    desk.ok("channel set alpha 1.1.0").await;
    desk.ok("rollout pause alpha --why looking").await;
    let info: RolloutInfo = server.admin().read("/api/v1/rollouts/alpha").await;
    let commands: Vec<String> = info
        .next_stage
        .iter()
        .filter_map(|line| Some(line.split_once("updatectl ")?.1.replace("TEXT", "because")))
        .collect();
    assert_eq!(commands.len(), 2, "{:?}", info.next_stage);
    for command in &commands {
        desk.ok(command).await;
    }
    for line in [
        "rollout nodes alpha",
        "rollout nodes alpha --phase failed,rolled-back,silent --limit 5",
        "node list --channel alpha --group web --version 1.0.0",
        "rollout policy show",
        "rollout policy show alpha",
        "rollout policy remove alpha --yes",
        "rollout show",
    ] {
        desk.ok(line).await;
    }
    desk.nothing_to_do("rollout policy remove alpha --yes").await;
    desk.fails("rollout policy remove alpha", Exit::Usage, "--yes").await;
}

/// A copy of the database takes the server back in time, as an attacker or a restored backup would.
#[tokio::test]
async fn nothing_is_signed_on_top_of_old_metadata() {
    let server = server().await;
    let desk = Desk::new(&server);
    desk.ok("root push @keys").await;
    desk.build("1.1.0");
    let old = desk.path("old.db");
    server.database.save(server.app.store(), &old).await;
    desk.ok(PUSH).await;

    let server = server.restart_after(|database, srv| database.restore(srv, &old)).await;
    let desk = desk.moved_to(&server);
    desk.fails(PUSH, Exit::Refused, "version 1: expected at least 2").await;
    desk.fails("release renew --key @keys/targets.pem", Exit::Refused, "nothing was signed").await;

    // Another version 2, signed with the right key by someone else.
    let stranger = TempDir::new().unwrap();
    for name in ["root.json", "targets.pem"] {
        std::fs::copy(desk.path("keys").join(name), stranger.path().join(name)).unwrap();
    }
    desk.ok(&format!("release renew --key {}", stranger.path().join("targets.pem").display())).await;
    desk.fails(PUSH, Exit::Refused, "someone else holds a targets key").await;

    std::fs::write(desk.path("keys/targets.seen.json"), "{").unwrap();
    desk.fails(PUSH, Exit::Failed, "is damaged").await;
    std::fs::remove_file(desk.path("keys/targets.seen.json")).unwrap();
    desk.ok(PUSH).await;
}

#[tokio::test]
async fn nothing_is_signed_on_top_of_what_our_root_does_not_vouch_for() {
    let server = server().await;
    let theirs = Desk::new(&server);
    theirs.ok("root push @keys").await;
    let ours = Desk::new(&server);
    ours.build("1.1.0");
    ours.fails(PUSH, Exit::Refused, "is not trusted; nothing was signed").await;
    ours.fails("root push @keys", Exit::Failed, "another root of version 1").await;
    assert!(!ours.path("keys/targets.seen.json").exists(), "what is not trusted was not seen");
}

/// Two operators with the same keys on two machines.
#[tokio::test]
async fn a_second_operator_goes_on_where_the_first_one_stopped() {
    let server = server().await;
    let first = Desk::new(&server);
    first.ok("root push @keys").await;
    let second = Desk::new(&server);
    for entry in std::fs::read_dir(first.path("keys")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), second.path("keys").join(entry.file_name())).unwrap();
    }
    first.build("1.1.0");
    second.build("1.2.0");
    first.ok(PUSH).await;
    second.ok("release push @1.2.0 --key @keys/targets.pem").await;
    first.ok("release renew --key @keys/targets.pem").await;
    assert_eq!(server.admin().read::<ReleaseList>("/api/v1/releases").await.releases.len(), 2);
}

#[tokio::test]
async fn who_speaks_to_whom() {
    let server = server().await;
    let mut desk = Desk::new(&server);
    desk.options.token = Some("wrong".to_owned());
    desk.fails("audit", Exit::Failed, "401").await;
    desk.options.token = None;
    desk.fails("audit", Exit::Usage, "UPDATECTL_TOKEN").await;
    desk.options.server = Some("ftp://x".to_owned());
    desk.fails("audit", Exit::Usage, "not a server's address").await;
    desk.options.server = None;
    desk.fails("audit", Exit::Usage, "UPDATECTL_SERVER").await;
}
