//! Steps 4 and 12: what operators are told of a fleet over time.

use super::EventKind;
use crate::id::Channel;
use crate::version::Version;
use jiff::Timestamp;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

/// How many events there were, day by day (UTC). The counts stay when the events are deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EventStats {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// The first day.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Date))]
    pub from: Date,
    /// The last day.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Date))]
    pub to: Date,
    /// By day, channel, version and kind; what did not happen is left out.
    pub counts: Vec<EventCount>,
}

/// The events of one kind on one day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EventCount {
    /// When the server heard of them.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Date))]
    pub day: Date,
    /// The channel of the nodes; none where the server knows no such channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<Channel>,
    /// The release that they are about; none where they are about none that the server knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// What happened.
    pub kind: EventKind,
    /// How often.
    pub events: u64,
}

/// How many nodes of a channel ran which version, hour by hour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VersionStats {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// The channel.
    pub channel: Channel,
    /// The first day (UTC).
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Date))]
    pub from: Date,
    /// The last day.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Date))]
    pub to: Date,
    /// By hour and version.
    pub counts: Vec<VersionCount>,
}

/// The nodes that ran one version in one hour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VersionCount {
    /// The hour's begin.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
    pub hour: Timestamp,
    /// The version; none for all but the most frequent together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// How many nodes said so when they were last heard of.
    pub nodes: u64,
}
