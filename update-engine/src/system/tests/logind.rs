//! Who holds a reboot, and how it is made.

use super::{LONG, PrivateBus, nowhere};
use crate::reboot::reboot;
use crate::system::logind::holders;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use zbus::interface;
use zbus::zvariant::{ObjectPath, OwnedObjectPath};

const NAME: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";

/// What, who, why, mode, user and process.
type Inhibitor = (String, String, String, String, u32, u32);

/// What a test sets and sees.
#[derive(Default)]
struct Seen {
    inhibitors: Vec<Inhibitor>,
    /// Name to user.
    sessions: HashMap<String, String>,
    own: Option<String>,
    calls: Vec<String>,
}

type Shared = Arc<Mutex<Seen>>;

fn inhibitor(what: &str, who: &str, mode: &str) -> Inhibitor {
    (what.to_owned(), who.to_owned(), "because".to_owned(), mode.to_owned(), 0, 42)
}

fn session_path(id: &str) -> OwnedObjectPath {
    ObjectPath::try_from(format!("{PATH}/session/{id}")).unwrap().into()
}

/// A logind of today.
struct Logind(Shared);

#[interface(name = "org.freedesktop.login1.Manager")]
impl Logind {
    fn list_inhibitors(&self) -> Vec<Inhibitor> {
        self.0.lock().unwrap().inhibitors.clone()
    }

    fn list_sessions(&self) -> Vec<(String, u32, String, String, OwnedObjectPath)> {
        let seen = self.0.lock().unwrap();
        let session = |(id, user): (&String, &String)| {
            (id.clone(), 1000, user.clone(), String::new(), session_path(id))
        };
        seen.sessions.iter().map(session).collect()
    }

    #[zbus(name = "GetSessionByPID")]
    fn get_session_by_pid(&self, _pid: u32) -> zbus::fdo::Result<OwnedObjectPath> {
        let own = self.0.lock().unwrap().own.clone();
        own.map(|id| session_path(&id)).ok_or_else(|| zbus::fdo::Error::Failed("no session".to_owned()))
    }

    fn set_wall_message(&self, message: &str, enable: bool) {
        self.0.lock().unwrap().calls.push(format!("wall {enable} {message}"));
    }

    fn reboot_with_flags(&self, flags: u64) {
        self.0.lock().unwrap().calls.push(format!("flags {flags}"));
    }

    fn reboot(&self, interactive: bool) {
        self.0.lock().unwrap().calls.push(format!("reboot {interactive}"));
    }
}

/// One that knows no flags.
struct OldLogind(Shared);

#[interface(name = "org.freedesktop.login1.Manager")]
impl OldLogind {
    fn reboot(&self, interactive: bool) {
        self.0.lock().unwrap().calls.push(format!("reboot {interactive}"));
    }
}

/// One that never answers.
struct Mute;

#[interface(name = "org.freedesktop.login1.Manager")]
impl Mute {
    async fn list_inhibitors(&self) -> Vec<Inhibitor> {
        std::future::pending().await
    }
}

struct Session {
    class: &'static str,
    state: &'static str,
}

#[interface(name = "org.freedesktop.login1.Session")]
impl Session {
    #[zbus(property)]
    fn class(&self) -> &str {
        self.class
    }

    #[zbus(property)]
    fn state(&self) -> &str {
        self.state
    }

    #[zbus(property, name = "TTY")]
    fn tty(&self) -> &str {
        "pts/7"
    }

    #[zbus(property)]
    fn remote_host(&self) -> &str {
        ""
    }
}

#[tokio::test]
async fn block_inhibitors_of_shutdown_hold_until_they_are_released() {
    let private = PrivateBus::start();
    let seen = Shared::default();
    seen.lock().unwrap().inhibitors = vec![
        inhibitor("sleep:shutdown", "backup", "block"),
        inhibitor("shutdown", "NetworkManager", "delay"),
        inhibitor("sleep:idle", "player", "block"),
        inhibitor("handle-shutdown-key", "desktop", "block"),
    ];
    let builder = private.serve().serve_at(PATH, Logind(seen.clone())).unwrap().name(NAME).unwrap();
    let _logind = builder.build().await.unwrap();
    let bus = private.bus(LONG);
    let found = holders(&bus).await.unwrap();
    let told: Vec<_> = found.inhibitors.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["backup (because), process 42 of user 0"]);
    seen.lock().unwrap().inhibitors.clear();
    assert_eq!(holders(&bus).await.unwrap(), crate::system::logind::Holders::default());
}

#[tokio::test]
async fn people_hold_but_greeters_closed_and_own_sessions_do_not() {
    let private = PrivateBus::start();
    let seen = Shared::default();
    let mut builder = private.serve().serve_at(PATH, Logind(seen.clone())).unwrap();
    for (id, class, state) in [
        ("c1", "greeter", "active"),
        ("s2", "user", "active"),
        ("s3", "user", "closing"),
        ("s4", "background", "active"),
        ("s5", "user", "online"),
        ("s6", "user", "active"),
    ] {
        seen.lock().unwrap().sessions.insert(id.to_owned(), format!("user-{id}"));
        builder = builder.serve_at(session_path(id), Session { class, state }).unwrap();
    }
    {
        let mut seen = seen.lock().unwrap();
        seen.own = Some("s6".to_owned());
        // Ended since it was listed: it has no object any more.
        seen.sessions.insert("s7".to_owned(), "gone".to_owned());
    }
    let _logind = builder.name(NAME).unwrap().build().await.unwrap();
    let found = holders(&private.bus(LONG)).await.unwrap();
    let mut told: Vec<_> = found.sessions.iter().map(ToString::to_string).collect();
    told.sort();
    assert_eq!(told, ["s2 of user-s2 on pts/7", "s5 of user-s5 on pts/7"]);
}

#[tokio::test]
async fn the_reboot_passes_inhibitors_and_tells_the_users() {
    let private = PrivateBus::start();
    let seen = Shared::default();
    let builder = private.serve().serve_at(PATH, Logind(seen.clone())).unwrap().name(NAME).unwrap();
    let _logind = builder.build().await.unwrap();
    assert_eq!(reboot(None, &private.bus(LONG), "soon").await, Ok(()));
    assert_eq!(std::mem::take(&mut seen.lock().unwrap().calls), ["wall true soon", "flags 16"]);
    // A command that is set comes instead.
    assert_eq!(reboot(Some(&["true".to_owned()]), &private.bus(LONG), "soon").await, Ok(()));
    assert_eq!(seen.lock().unwrap().calls, [""; 0]);
}

#[tokio::test]
async fn an_old_logind_reboots_without_flags() {
    let private = PrivateBus::start();
    let seen = Shared::default();
    let builder = private.serve().serve_at(PATH, OldLogind(seen.clone())).unwrap().name(NAME).unwrap();
    let _logind = builder.build().await.unwrap();
    assert_eq!(reboot(None, &private.bus(LONG), "soon").await, Ok(()));
    assert_eq!(seen.lock().unwrap().calls, ["reboot false"]);
}

#[tokio::test]
async fn a_logind_that_is_mute_or_absent_is_told_apart() {
    let private = PrivateBus::start();
    let builder = private.serve().serve_at(PATH, Mute).unwrap();
    let mute = builder.name(NAME).unwrap().build().await.unwrap();
    let late = holders(&private.bus(Duration::from_millis(300))).await.unwrap_err();
    assert!(!late.is_absence(), "{late:?}");
    assert!(late.to_string().contains("ListInhibitors did not answer within"), "{late}");
    mute.close().await.unwrap();
    let absent = holders(&private.bus(LONG)).await.unwrap_err();
    assert!(absent.is_absence(), "{absent:?}");
    let no_bus = holders(&nowhere()).await.unwrap_err();
    assert!(no_bus.is_absence(), "{no_bus:?}");
}
