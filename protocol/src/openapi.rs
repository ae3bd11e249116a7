//! Step 4, channel: how text of a checked kind reads in the server's OpenAPI document. The documents themselves derive
//! their schemas where they are defined.

use crate::digest::Sha256;
use crate::id::{Arch, BootId, Channel, Group, NodeId};
use crate::lock::{AttemptId, ClientId, Zone};
use crate::rollout::Share;
use crate::version::Version;
use crate::window::DAYS;
use crate::wire::NodeCredential;
use std::borrow::Cow;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// As `id::is_name` checks it.
const NAME: &str = "^[A-Za-z0-9][A-Za-z0-9._-]*$";
/// As `document::visible!` checks it.
const VISIBLE: &str = "^[!-~]+$";

/// A day of the week in a window: `mon` to `sun`.
#[derive(Debug)]
pub struct Day;

macro_rules! text {
    ($name:ident, $max:literal, $pattern:expr, $what:literal) => {
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let text = ObjectBuilder::new().schema_type(Type::String).description(Some($what));
                text.pattern(Some($pattern)).min_length(Some(1)).max_length(Some($max)).into()
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed(stringify!($name))
            }
        }
    };
}

text!(Channel, 64, NAME, "A release line that nodes follow.");
text!(Group, 64, NAME, "A set of nodes that share a rollout and a reboot lock.");
text!(Arch, 64, NAME, "An architecture, such as x86-64 or arm64.");
text!(BootId, 64, NAME, "One boot of one machine.");
text!(NodeId, 32, "^[0-9a-f]{32}$", "One node.");
text!(ClientId, 256, VISIBLE, "Who holds or waits: a node's id, or what a FleetLock v1 client calls itself.");
text!(AttemptId, 128, VISIBLE, "One attempt of one node to reboot into one release.");
text!(Zone, 64, VISIBLE, "Where a node stands, for limits per zone.");
text!(Sha256, 64, "^[0-9a-f]{64}$", "A SHA-256 digest.");
text!(
    Version,
    64,
    r"^[0-9]+(\.[0-9]+){0,3}(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?$",
    "A release's version: one to four numbers and an optional pre-release."
);
text!(
    Share,
    7,
    r"^(100(\.0{1,2})?|[0-9]{1,2}(\.[0-9]{1,2})?)%$",
    "A part of a whole: a percentage with up to two decimals."
);
text!(NodeCredential, 78, "^flipside_node_[0-9a-f]{64}$", "A node's own secret.");

impl PartialSchema for Day {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(DAYS)).into()
    }
}

impl ToSchema for Day {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Day")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern<T: ToSchema>() -> String {
        serde_json::to_value(T::schema()).unwrap()["pattern"].as_str().unwrap().to_owned()
    }

    /// What a type writes has the length that its schema allows: the numbers above are written by hand.
    #[test]
    fn lengths_are_those_of_the_types() {
        let max = |schema: RefOr<Schema>| {
            let max = serde_json::to_value(schema).unwrap()["maxLength"].as_u64().unwrap();
            "a".repeat(usize::try_from(max).unwrap())
        };
        let channel = max(Channel::schema());
        assert!(channel.parse::<Channel>().is_ok() && format!("{channel}a").parse::<Channel>().is_err());
        let client = max(ClientId::schema());
        assert!(client.parse::<ClientId>().is_ok() && format!("{client}a").parse::<ClientId>().is_err());
        let attempt = max(AttemptId::schema());
        assert!(attempt.parse::<AttemptId>().is_ok() && format!("{attempt}a").parse::<AttemptId>().is_err());
        let zone = max(Zone::schema());
        assert!(zone.parse::<Zone>().is_ok() && format!("{zone}a").parse::<Zone>().is_err());
        let node = max(NodeId::schema());
        assert!(node.parse::<NodeId>().is_ok() && format!("{node}a").parse::<NodeId>().is_err());
        let digest = max(Sha256::schema());
        assert!(digest.parse::<Sha256>().is_ok() && format!("{digest}a").parse::<Sha256>().is_err());
        let secret = NodeCredential::from_random([7; 32]);
        assert_eq!(secret.reveal().len(), max(NodeCredential::schema()).len());
        assert!(pattern::<Channel>().starts_with('^') && pattern::<Channel>().ends_with('$'));
    }
}
