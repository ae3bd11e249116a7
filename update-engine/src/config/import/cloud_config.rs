//! A `#cloud-config`: `coreos.update` and `coreos.locksmith`, as coreos-cloudinit read them.

use super::update_conf::{Key, Locksmith};
use super::yaml::{Leaf, leaves};
use super::{Entry, Format, ImportError, Imported};

/// Is it one?
pub(super) fn is(text: &str) -> bool {
    let header = text.lines().next().is_some_and(|line| line.trim_end() == "#cloud-config");
    header || text.lines().any(|line| line.trim_end() == "coreos:")
}

pub(super) fn import(text: &str) -> Result<Imported, ImportError> {
    let mut imported = Imported::new(Format::CloudConfig);
    let mut locksmith = Locksmith::default();
    let mut others: Vec<Entry> = Vec::new();
    for leaf in leaves(text)? {
        let names: Vec<String> = leaf.path.iter().map(|name| name.replace('_', "-")).collect();
        match names.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["coreos", section @ ("update" | "locksmith"), name] => match key(section, name) {
                Some(key) => locksmith.take(&mut imported, key, &leaf.entry()),
                None => imported.not_taken(&leaf.entry(), "no such key is known"),
            },
            _ => other(&leaf, &mut others),
        }
    }
    for entry in others {
        let text = if entry.key.starts_with("write") {
            "not about updates; an update.conf or a drop-in of locksmithd in it is imported by itself"
        } else {
            "not about updates: it stays with what sets up the machine"
        };
        imported.not_taken(&entry, text);
    }
    locksmith.finish(&mut imported, "coreos.update.reboot-strategy");
    Ok(imported)
}

fn key(section: &str, name: &str) -> Option<Key> {
    Some(match (section, name) {
        ("update", "group") => Key::Group,
        ("update", "server") => Key::Server,
        ("update", "reboot-strategy") => Key::Strategy,
        ("locksmith", "group") => Key::LockGroup,
        ("locksmith", "window-start") => Key::WindowStart,
        ("locksmith", "window-length") => Key::WindowLength,
        ("locksmith", "endpoint") => Key::Endpoint,
        ("locksmith", "etcd-cafile") => Key::EtcdCa,
        ("locksmith", "etcd-certfile") => Key::EtcdCert,
        ("locksmith", "etcd-keyfile") => Key::EtcdPrivate,
        ("locksmith", "etcd-username") => Key::EtcdUser,
        ("locksmith", "etcd-password") => Key::EtcdPassword,
        _ => return None,
    })
}

/// What is not about updates is named once: by its key, below `coreos` by two.
fn other(leaf: &Leaf, others: &mut Vec<Entry>) {
    let depth = if leaf.path.first().is_some_and(|name| name == "coreos") { 2 } else { 1 };
    let mut entry = leaf.entry();
    entry.key = leaf.path.iter().take(depth).cloned().collect::<Vec<_>>().join(".");
    if entry.key.is_empty() {
        entry.key = "(a value without a key)".to_owned();
    }
    if !others.iter().any(|other| other.key == entry.key) {
        others.push(entry);
    }
}
