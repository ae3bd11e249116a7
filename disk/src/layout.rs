//! Steps 7 and 8, slot and flip: which partitions make up a slot, by name.

use protocol::id::PartitionRole;
use protocol::slot::Slot;
use serde::{Deserialize, Serialize};

/// The partitions of the two slots. Nothing else on the disk is ever written, the partition table aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotLayout {
    /// What a slot is made of. The boot attributes live on the partitions of the role `root`.
    pub roles: Vec<RoleLayout>,
    /// The GPT type of the root partitions, by which boot loaders find them.
    #[serde(default = "default_root_type")]
    pub root_type: String,
}

/// The two partitions of one role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleLayout {
    /// What they hold.
    pub role: PartitionRole,
    /// GPT name of slot A's partition.
    pub a: String,
    /// GPT name of slot B's partition.
    pub b: String,
}

/// The type that gptprio loaders and cgpt look for.
pub const ROOT_TYPE: &str = "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6";

fn default_root_type() -> String {
    ROOT_TYPE.to_owned()
}

impl RoleLayout {
    /// The GPT name of this role's partition in a slot.
    #[must_use]
    pub fn name(&self, slot: Slot) -> &str {
        match slot {
            Slot::A => &self.a,
            Slot::B => &self.b,
        }
    }
}

impl Default for SlotLayout {
    fn default() -> Self {
        let role = |role, a: &str, b: &str| RoleLayout { role, a: a.to_owned(), b: b.to_owned() };
        Self {
            roles: vec![
                role(PartitionRole::boot(), "BOOT-A", "BOOT-B"),
                role(PartitionRole::root(), "ROOT-A", "ROOT-B"),
            ],
            root_type: default_root_type(),
        }
    }
}
