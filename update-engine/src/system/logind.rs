//! Step 10, reboot: who holds it, who is warned of it, and the reboot itself, by logind.
//!
//! Only `block` inhibitors hold: a `delay` inhibitor is given its time by logind itself, when it reboots.

use super::bus::{Bus, BusError, Connection, Peer, text};
use rustix::fs::{Mode, OFlags};
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;
use zbus::zvariant::OwnedObjectPath;

const MANAGER: Peer<'static> = Peer {
    name: "org.freedesktop.login1",
    path: "/org/freedesktop/login1",
    interface: "org.freedesktop.login1.Manager",
};

/// `RebootWithFlags`: whoever held the reboot was respected for long enough (since systemd 255).
const SKIP_INHIBITORS: u64 = 1 << 4;

/// How often the users are warned again, at most.
const WARN_EVERY: Duration = Duration::from_secs(300);

/// An inhibitor of mode `block` that keeps the system from going down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inhibitor {
    /// Who holds it, in its own words.
    pub who: String,
    /// Why, in its own words.
    pub why: String,
    /// The user id of the process.
    pub uid: u32,
    /// The process.
    pub pid: u32,
}

impl std::fmt::Display for Inhibitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}), process {} of user {}", self.who, self.why, self.pid, self.uid)
    }
}

/// Somebody who is logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its id.
    pub id: String,
    /// Who.
    pub user: String,
    /// The terminal, as in `pts/0`; empty where there is none.
    pub tty: String,
    /// From where, if not here.
    pub remote_host: String,
}

impl std::fmt::Display for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.id, self.user)?;
        if !self.tty.is_empty() {
            write!(f, " on {}", self.tty)?;
        }
        if !self.remote_host.is_empty() {
            write!(f, " from {}", self.remote_host)?;
        }
        Ok(())
    }
}

/// What holds a reboot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// Inhibitors.
    pub inhibitors: Vec<Inhibitor>,
    /// Sessions.
    pub sessions: Vec<Session>,
}

/// Asks logind what holds a reboot.
///
/// # Errors
/// [`BusError`]
pub async fn holders(bus: &Bus) -> Result<Holders, BusError> {
    let connection = bus.connect().await?;
    Ok(Holders { inhibitors: inhibitors(&connection).await?, sessions: sessions(&connection).await? })
}

async fn inhibitors(connection: &Connection) -> Result<Vec<Inhibitor>, BusError> {
    type Listed = Vec<(String, String, String, String, u32, u32)>;
    let listed: Listed = connection.call(MANAGER, "ListInhibitors", &()).await?;
    let holds = |what: &str, mode: &str| mode == "block" && what.split(':').any(|what| what == "shutdown");
    let held = listed.into_iter().filter(|(what, _, _, mode, ..)| holds(what, mode));
    Ok(held.map(|(_, who, why, _, uid, pid)| Inhibitor { who, why, uid, pid }).collect())
}

async fn sessions(connection: &Connection) -> Result<Vec<Session>, BusError> {
    type Listed = Vec<(String, u32, String, String, OwnedObjectPath)>;
    let listed: Listed = connection.call(MANAGER, "ListSessions", &()).await?;
    // A service has no session; an engine that a person started by hand is in theirs.
    let own: Option<OwnedObjectPath> =
        connection.call(MANAGER, "GetSessionByPID", &(std::process::id(),)).await.ok();
    let mut found = Vec::new();
    for (id, _, user, _, path) in listed {
        if own.as_ref() == Some(&path) {
            continue;
        }
        let session = Peer { path: path.as_str(), interface: "org.freedesktop.login1.Session", ..MANAGER };
        // It may have ended since it was listed.
        let properties = match connection.properties(session).await {
            Ok(properties) => properties,
            Err(error @ BusError::Late { .. }) => return Err(error),
            Err(_) => continue,
        };
        if is_a_persons(&text(&properties, "Class"), &text(&properties, "State")) {
            let (tty, remote_host) = (text(&properties, "TTY"), text(&properties, "RemoteHost"));
            found.push(Session { id, user, tty, remote_host });
        }
    }
    Ok(found)
}

/// Greeters, lock screens, cron jobs and the users' service managers are nobody at work; a session that is closing is
/// over. A session in the background of its seat (`online`) is somebody's work as well.
fn is_a_persons(class: &str, state: &str) -> bool {
    matches!(class, "user" | "user-early" | "user-light" | "user-early-light") && state != "closing"
}

/// Writes a warning to the terminals of sessions, each at most every five minutes.
#[derive(Debug, Default)]
pub struct Warnings {
    last: HashMap<String, Instant>,
}

impl Warnings {
    /// The sessions that are to be warned now; they count as warned.
    pub fn due<'a>(&mut self, sessions: &'a [Session], now: Instant) -> Vec<&'a Session> {
        self.last.retain(|id, at| {
            now.duration_since(*at) < WARN_EVERY && sessions.iter().any(|session| session.id == *id)
        });
        let due: Vec<_> = sessions.iter().filter(|session| !self.last.contains_key(&session.id)).collect();
        self.last.extend(due.iter().map(|session| (session.id.clone(), now)));
        due
    }
}

/// Writes a line to a session's terminal, if it has one. `dev` is `/dev`. Never waits: a terminal that takes nothing
/// gets nothing.
///
/// # Errors
/// Where the terminal cannot be opened or written.
pub fn write_to(session: &Session, dev: &Path, line: &str) -> std::io::Result<()> {
    // Only a terminal's name, as in `pts/0`: what logind says becomes a path that is opened as root.
    let is_name = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric()) && !name.is_empty();
    if session.tty.is_empty() || !session.tty.split('/').all(is_name) {
        return Ok(());
    }
    let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut terminal = std::fs::File::from(rustix::fs::open(dev.join(&session.tty), flags, Mode::empty())?);
    std::io::Write::write_all(&mut terminal, format!("\r\n\x07{line}\r\n").as_bytes())
}

/// Reboots. Whoever still holds it is passed over: the engine waited for them.
///
/// # Errors
/// [`BusError`]
pub async fn reboot(bus: &Bus, wall: &str) -> Result<(), BusError> {
    let connection = bus.connect().await?;
    if !wall.is_empty() {
        // logind sends it to every terminal when it reboots. Without it the reboot is no less right.
        let set: Result<(), _> = connection.call(MANAGER, "SetWallMessage", &(wall, true)).await;
        if let Err(error) = set {
            tracing::warn!("logind takes no message for the users: {}", crate::error::chain(&error));
        }
    }
    let flagged: Result<(), _> = connection.call(MANAGER, "RebootWithFlags", &SKIP_INHIBITORS).await;
    match flagged {
        // An older logind knows neither the flag nor, before that, the method; it lets root pass inhibitors.
        Err(error @ BusError::Call { .. }) if !error.is_absence() => {
            tracing::info!("logind does not reboot with flags, so without: {}", crate::error::chain(&error));
            connection.call(MANAGER, "Reboot", &false).await
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(id: &str, tty: &str) -> Session {
        let remote_host = "10.0.0.9".to_owned();
        Session { id: id.to_owned(), user: "ann".to_owned(), tty: tty.to_owned(), remote_host }
    }

    #[test]
    fn only_people_count() {
        for (class, state, counts) in [
            ("user", "active", true),
            ("user", "online", true),
            ("user-early", "active", true),
            ("user", "closing", false),
            ("greeter", "active", false),
            ("lock-screen", "active", false),
            ("background", "online", false),
            ("manager", "active", false),
        ] {
            assert_eq!(is_a_persons(class, state), counts, "{class} {state}");
        }
        assert_eq!(session("4", "pts/0").to_string(), "4 of ann on pts/0 from 10.0.0.9");
    }

    #[test]
    fn each_session_is_warned_every_five_minutes() {
        let mut warnings = Warnings::default();
        let start = Instant::now();
        let both = [session("1", "pts/0"), session("2", "pts/1")];
        let ids = |due: Vec<&Session>| due.iter().map(|session| session.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(warnings.due(&both[..1], start)), ["1"]);
        assert_eq!(ids(warnings.due(&both, start + Duration::from_secs(30))), ["2"]);
        assert_eq!(ids(warnings.due(&both, start + Duration::from_secs(299))), [""; 0]);
        assert_eq!(ids(warnings.due(&both, start + WARN_EVERY)), ["1"]);
    }

    #[test]
    fn a_warning_reaches_terminals_and_nothing_else() {
        let dev = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dev.path().join("pts")).unwrap();
        std::fs::write(dev.path().join("pts/0"), "").unwrap();
        std::fs::write(dev.path().join("passwd"), "kept").unwrap();
        write_to(&session("1", "pts/0"), dev.path(), "soon").unwrap();
        assert_eq!(std::fs::read_to_string(dev.path().join("pts/0")).unwrap(), "\r\n\x07soon\r\n");
        write_to(&session("1", "pts/../passwd"), dev.path(), "soon").unwrap();
        write_to(&session("1", "/etc/passwd"), dev.path(), "soon").unwrap();
        assert_eq!(std::fs::read_to_string(dev.path().join("passwd")).unwrap(), "kept");
        assert!(write_to(&session("1", "pts/9"), dev.path(), "soon").is_err());
        write_to(&session("1", ""), dev.path(), "soon").unwrap();
    }

    /// On a terminal as people have them: `script` makes one, and shows what is written to it.
    #[test]
    fn a_warning_is_seen_on_a_terminal() {
        use std::io::BufRead as _;
        use std::process::{Command, Stdio};
        let mut script = Command::new("script")
            .args(["--quiet", "--command", "tty; exec cat", "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script: apt-get install bsdutils");
        let mut screen = std::io::BufReader::new(script.stdout.take().unwrap());
        let mut line = || {
            let mut line = String::new();
            assert_ne!(screen.read_line(&mut line).unwrap(), 0, "the terminal is gone");
            line
        };
        let name = line();
        let tty = name.trim().strip_prefix("/dev/").unwrap_or_else(|| panic!("no terminal: {name:?}"));
        write_to(&session("1", tty), Path::new("/dev"), "reboots soon").unwrap();
        // A line of its own, with the bell; the terminal makes of each line end what a screen needs.
        assert_eq!([line(), line()], ["\r\r\n", "\x07reboots soon\r\r\n"]);
        script.kill().unwrap();
        script.wait().unwrap();
    }
}
