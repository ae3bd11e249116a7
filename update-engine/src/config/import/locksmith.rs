//! Locksmith's lock in etcd v2, as `[lock]` with the backend etcd has it here.
//!
//! The two locks know nothing of each other. So what is taken over is where the lock is, and never what it says: that is
//! the business of `updatectl lock import`.

use super::update_conf::Key;
use super::{Entry, Imported};
use crate::config::settings::endpoint;
use protocol::id::Group;
use toml::Value as Toml;

/// Where locksmith finds etcd if nothing says where.
const LOCAL: &str = "http://127.0.0.1:2379";

/// The file that the password goes to: it is never repeated in a fragment, which everybody may read.
const PASSWORD_FILE: &str = "/etc/update-engine/etcd-password";

/// Everything that tells which lock it asks.
#[derive(Debug, Default)]
pub(super) struct Semaphore {
    group: Option<Entry>,
    endpoint: Option<Entry>,
    ca: Option<Entry>,
    cert: Option<Entry>,
    key: Option<Entry>,
    user: Option<Entry>,
    password: Option<Entry>,
}

impl Semaphore {
    /// Where a key of it is kept.
    pub(super) fn place(&mut self, key: Key) -> Option<&mut Option<Entry>> {
        Some(match key {
            Key::LockGroup => &mut self.group,
            Key::Endpoint => &mut self.endpoint,
            Key::EtcdCa => &mut self.ca,
            Key::EtcdCert => &mut self.cert,
            Key::EtcdPrivate => &mut self.key,
            Key::EtcdUser => &mut self.user,
            Key::EtcdPassword => &mut self.password,
            Key::Group | Key::Server | Key::Strategy | Key::WindowStart | Key::WindowLength => return None,
        })
    }

    /// Names all of it that is set.
    pub(super) fn leave(self, imported: &mut Imported, why: &str) {
        let Self { group, endpoint, ca, cert, key, user, password } = self;
        for entry in [group, endpoint, ca, cert, key, user, password].into_iter().flatten() {
            imported.not_taken(&entry, why);
        }
    }

    /// Takes it over and gives the lock's group; where it would become another lock than the one that is meant, takes over
    /// nothing and says why: a node that counts elsewhere reboots beside those that it was to wait for.
    pub(super) fn take(mut self, imported: &mut Imported, strategy: &Entry) -> Result<String, String> {
        const OFF: &str = "reboot.strategy is off";
        let group = match self.group.take() {
            None => None,
            Some(entry) => match entry.value.text().unwrap_or_default().parse::<Group>() {
                Ok(group) => Some((entry, group)),
                Err(problem) => {
                    imported.not_taken(&entry, format!("lock.group would be {problem}"));
                    self.leave(imported, OFF);
                    return Err(format!(
                        "its group, {} in line {}, has no such name here",
                        entry.key, entry.line
                    ));
                }
            },
        };
        let endpoints = match self.endpoint.take() {
            None => None,
            Some(entry) => match addresses(&entry) {
                Ok(addresses) => Some((entry, addresses)),
                Err(problem) => {
                    imported.not_taken(&entry, problem);
                    self.group = group.map(|(entry, _)| entry);
                    self.leave(imported, OFF);
                    return Err(format!("its etcd, {} in line {}, is not understood", entry.key, entry.line));
                }
            },
        };
        imported.set("lock.backend", "etcd", strategy);
        match endpoints {
            Some((entry, addresses)) => imported.set("lock.etcd.endpoints", Toml::Array(addresses), &entry),
            None => imported.set("lock.etcd.endpoints", Toml::Array(vec![LOCAL.into()]), strategy),
        }
        self.certificates(imported);
        self.login(imported);
        Ok(match group {
            Some((entry, group)) => {
                imported.set("lock.group", group.as_str(), &entry);
                group.as_str().to_owned()
            }
            None => "default".to_owned(),
        })
    }

    fn certificates(&mut self, imported: &mut Imported) {
        if let Some(ca) = self.ca.take() {
            path(imported, "lock.etcd.ca", &ca);
        }
        match (self.cert.take(), self.key.take()) {
            (Some(cert), Some(key)) => {
                path(imported, "lock.etcd.cert", &cert);
                path(imported, "lock.etcd.key", &key);
            }
            (cert, key) => {
                for entry in [cert, key].into_iter().flatten() {
                    imported.not_taken(
                        &entry,
                        "a client certificate needs its private key beside it, and the other way round",
                    );
                }
            }
        }
    }

    fn login(&mut self, imported: &mut Imported) {
        match (self.user.take(), self.password.take()) {
            (Some(user), password) => {
                imported.set("lock.etcd.user", user.value.text().unwrap_or_default(), &user);
                let told = password.as_ref().unwrap_or(&user);
                imported.set("lock.etcd.password_file", PASSWORD_FILE, told);
                imported.changed(
                    told,
                    format!(
                        "write the password to {PASSWORD_FILE}, with mode 0600: it is not repeated here, and without it no \
                         permit can be asked for"
                    ),
                );
            }
            (None, Some(password)) => {
                imported.not_taken(&password, "a password needs its user name beside it");
            }
            (None, None) => {}
        }
    }
}

/// What whoever had this lock must know once the node asks the new one.
pub(super) fn moved(group: &str) -> String {
    let key = match group {
        "default" => "semaphore".to_owned(),
        group => format!("groups/{group}/semaphore"),
    };
    let new = match group {
        "default" => "",
        _ => ". Until then, or until it has a policy, that group grants nothing",
    };
    format!(
        "the permit comes from the lock of group {group} in etcd v3 (from 3.4 on, lock.etcd.prefix) and no longer from \
         locksmith's key in etcd v2. Neither counts the other's holders: stop locksmithd on all nodes, then take its number \
         and holders over once, by `updatectl lock import FILE --group {group}` with the value of \
         /coreos.com/updateengine/rebootlock/{key}{new}"
    )
}

/// Locksmith's list, with commas; one that is understood in part would ask fewer members than there are.
fn addresses(entry: &Entry) -> Result<Vec<Toml>, String> {
    let text = entry.value.text().unwrap_or_default();
    text.split(',')
        .map(str::trim)
        .map(|address| match endpoint(address) {
            // Without the slash that a parsed address ends in: as people write it.
            Some(url) => Ok(Toml::from(url.as_str().trim_end_matches('/'))),
            // It may hold a password.
            None if address.contains('@') => {
                Err("expected addresses like https://etcd1.example.org:2379, found one with a user in it"
                    .to_owned())
            }
            None => Err(format!("expected addresses like https://etcd1.example.org:2379, found {address:?}")),
        })
        .collect()
}

/// A path as the service sees it, which runs in `/`; in a fragment a relative one would count from the fragment's folder.
fn path(imported: &mut Imported, key: &'static str, entry: &Entry) {
    let text = entry.value.text().unwrap_or_default();
    imported.set(key, format!("/{}", text.trim_start_matches('/')), entry);
}
