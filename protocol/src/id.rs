//! Names and ids: each a type of its own, checked where it enters, so that a channel is never taken for a group and
//! a name is always safe in a path or a URL.

use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::str::FromStr;

/// Text that is not a valid name of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {kind}: expected {expected}, found {found:?}")]
pub struct InvalidId {
    kind: &'static str,
    expected: &'static str,
    found: String,
}

/// Up to 64 characters of a plain name; the first is a letter or digit, so that no name is `..`, hidden or a flag.
fn is_name(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn is_hex32(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:ident, $expected:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The text, valid as a path component and in a URL.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                if $check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidId { kind: $kind, expected: $expected, found: text.chars().take(80).collect() })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

const NAME: &str = "up to 64 letters, digits, '.', '_' or '-', starting with a letter or digit";

id!(
    /// A release line that nodes follow, such as `alpha`, `beta`, `stable`.
    Channel, "channel", is_name, NAME
);
id!(
    /// A set of nodes that share a rollout and a reboot lock.
    Group, "group", is_name, NAME
);
id!(
    /// An architecture as UAPI and systemd write it: `x86-64`, `arm64`.
    Arch, "architecture", is_name, NAME
);
id!(
    /// What a partition holds, the same in both slots: `root`, `boot`. A slot's partition is named after it on the
    /// disk: `ROOT-A`.
    PartitionRole, "partition role", is_name,
    NAME
);
id!(
    /// One node: 32 lower-case hexadecimal digits, made at random at first boot and kept on `STATE`.
    NodeId, "node id", is_hex32, "32 lower-case hexadecimal digits"
);
id!(
    /// One boot of one machine, as `/proc/sys/kernel/random/boot_id` gives it, or any name given by `--boot-id`.
    BootId, "boot id", is_name, NAME
);

impl PartitionRole {
    /// The role of the partition that carries the attribute bits.
    #[must_use]
    pub fn root() -> Self {
        Self("root".to_owned())
    }

    /// The role of the partition that holds kernel and initrd.
    #[must_use]
    pub fn boot() -> Self {
        Self("boot".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_paths() {
        for good in ["alpha", "x86-64", "a", "0", "v1.2_3", &"a".repeat(64)] {
            assert_eq!(good.parse::<Channel>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "-x", "_x", "a/b", "a b", "ä", "a\0", "a\n", &"a".repeat(65)] {
            assert!(bad.parse::<Channel>().is_err(), "{bad:?}");
            assert!(serde_json::from_value::<Channel>(bad.into()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn node_ids_are_hex() {
        assert!("0123456789abcdef0123456789abcdef".parse::<NodeId>().is_ok());
        for bad in ["", "0123456789ABCDEF0123456789abcdef", "0123456789abcdef0123456789abcde"] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn errors_say_what_was_expected() {
        let error = "a/b".parse::<Group>().unwrap_err().to_string();
        assert_eq!(error, format!("not a valid group: expected {}, found \"a/b\"", NAME));
    }
}
