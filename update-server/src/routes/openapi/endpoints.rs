//! Step 4, channel: every address of the server, who may ask there, what goes in and what comes out.

use super::{Endpoint, day, number, phases};
use crate::auth::Role::{Operator, Publisher, Viewer};
use protocol::id::{Channel, Group, NodeId};
use protocol::lock::ClientId;
use protocol::version::Version;
use protocol::wire::{
    AuditLog, ChannelInfo, ChannelList, ChannelPromote, ChannelSet, EnrolmentCreate, EnrolmentCreated,
    EnrolmentList, EventStats, Events, FleetLockBody, LockAnswer, LockCommand, LockImport, LockInfo,
    LockList, LockRelease, LockView, NodeExplain, NodeGroup, NodeList, NodeRemove, NodeRevoke, NodeRevoked,
    NodeShow, Policies, PolicyRemove, PolicySet, Published, ReleaseList, ReleasePush, RolloutAct,
    RolloutInfo, RolloutList, RolloutNodes, RootPush, SimulationReport, SimulationRequest, UpdateAnswer,
    UpdateCheck, VersionStats,
};
use utoipa::openapi::path::HttpMethod::{Delete, Get, Post, Put};

/// All of them.
pub(super) fn all() -> Vec<Endpoint> {
    [nodes(), publishing(), rollouts(), fleet(), enrolment(), locks(), server()].concat()
}

fn nodes() -> Vec<Endpoint> {
    vec![
        Endpoint::new(Post, "/v1/update-check", "A node asks whether it should update.")
            .node(false)
            .takes::<UpdateCheck>()
            .gives::<UpdateAnswer>(),
        Endpoint::new(Post, "/v1/events", "What happened on a node: 204 once it is durable.")
            .node(false)
            .takes::<Events>()
            .done(),
        Endpoint::new(Get, "/v1/metadata/{file}", "A file of TUF metadata, byte for byte.")
            .file("application/json", &[404]),
        Endpoint::new(Get, "/v1/targets/{path}", "A target file by its consistent-snapshot name.")
            .file("application/json", &[404]),
        Endpoint::new(Get, "/v1/payloads/{digest}", "A payload, whole or by one range.")
            .file("application/octet-stream", &[404, 503])
            .ranges(),
        Endpoint::new(Post, "/v2/lock/{group}", "A node asks the reboot lock for something.")
            .node(true)
            .takes::<LockCommand>()
            .gives::<LockAnswer>()
            .fails(&[503]),
        Endpoint::new(Get, "/v2/lock/{group}", "A group's lock, for a node that waits.")
            .node(true)
            .asks::<ClientId>("node", true, "Who asks.")
            .gives::<LockView>()
            .fails(&[404, 503]),
        Endpoint::new(Post, "/v1/pre-reboot", "FleetLock v1: a permit, please.").fleetlock::<FleetLockBody>(),
        Endpoint::new(Post, "/v1/steady-state", "FleetLock v1: the permit is not needed any more.")
            .fleetlock::<FleetLockBody>(),
    ]
}

fn publishing() -> Vec<Endpoint> {
    vec![
        Endpoint::new(Put, "/api/v1/root", "Sets the root of trust, signed offline.")
            .operator(Operator)
            .takes::<RootPush>()
            .gives::<Published>()
            .fails(&[404, 409, 503]),
        Endpoint::new(Put, "/api/v1/payloads/{digest}", "Uploads a payload: 204 once it is durable.")
            .operator(Publisher)
            .takes_bytes()
            .done()
            .fails(&[503, 507]),
        Endpoint::new(Get, "/api/v1/releases", "The releases, newest first.")
            .operator(Viewer)
            .gives::<ReleaseList>(),
        Endpoint::new(Post, "/api/v1/releases", "Pushes a signed release.")
            .operator(Publisher)
            .takes::<ReleasePush>()
            .gives::<Published>()
            .fails(&[404, 409, 503]),
        Endpoint::new(Get, "/api/v1/channels", "The channels, by name.")
            .operator(Viewer)
            .gives::<ChannelList>(),
        Endpoint::new(Put, "/api/v1/channels/{channel}", "Points a channel at a release.")
            .operator(Operator)
            .takes::<ChannelSet>()
            .gives::<ChannelInfo>()
            .fails(&[404, 409, 503]),
        Endpoint::new(
            Post,
            "/api/v1/channels/{channel}/promote",
            "Points a channel at another one's release.",
        )
        .operator(Operator)
        .takes::<ChannelPromote>()
        .gives::<ChannelInfo>()
        .fails(&[404, 409, 503]),
    ]
}

fn rollouts() -> Vec<Endpoint> {
    let act = |path, what| {
        Endpoint::new(Post, path, what)
            .operator(Operator)
            .takes::<RolloutAct>()
            .gives::<RolloutInfo>()
            .fails(&[404, 409])
    };
    vec![
        Endpoint::new(Get, "/api/v1/rollouts", "The rollouts, by channel.")
            .operator(Viewer)
            .gives::<RolloutList>(),
        Endpoint::new(Get, "/api/v1/rollouts/{channel}", "One channel's rollout.")
            .operator(Viewer)
            .gives::<RolloutInfo>()
            .fails(&[404]),
        Endpoint::new(Get, "/api/v1/rollouts/{channel}/nodes", "Nodes that were let go, by id: a page.")
            .operator(Viewer)
            .asks_plain("phase", phases(), "Only in these phases.")
            .asks::<NodeId>("after", false, "Only nodes after this one.")
            .asks_plain("limit", number(u64::from(u32::MAX)), "How many to give; more than 10000 is 10000.")
            .gives::<RolloutNodes>()
            .fails(&[404]),
        act("/api/v1/rollouts/{channel}/pause", "Lets nobody go, until it is resumed."),
        act("/api/v1/rollouts/{channel}/resume", "Lets nodes go again."),
        act("/api/v1/rollouts/{channel}/approve", "Approves that the next stage opens."),
        Endpoint::new(
            Post,
            "/api/v1/rollouts/{channel}/simulate",
            "How a rollout would go; changes nothing.",
        )
        .operator(Viewer)
        .takes::<SimulationRequest>()
        .gives::<SimulationReport>()
        .fails(&[404]),
        Endpoint::new(Get, "/api/v1/rollout-policy", "The rollout policies of all channels.")
            .operator(Viewer)
            .gives::<Policies>(),
        Endpoint::new(Put, "/api/v1/rollout-policy", "Sets rollout policies.")
            .operator(Operator)
            .takes::<PolicySet>()
            .gives::<Policies>()
            .fails(&[409]),
        Endpoint::new(
            Post,
            "/api/v1/rollout-policy/{channel}/remove",
            "Lets the default policy hold for a channel.",
        )
        .operator(Operator)
        .takes::<PolicyRemove>()
        .gives::<Policies>()
        .fails(&[404, 409]),
    ]
}

fn fleet() -> Vec<Endpoint> {
    vec![
        Endpoint::new(Get, "/api/v1/nodes", "The nodes by last contact, newest first.")
            .operator(Viewer)
            .asks::<Channel>("channel", false, "Only those that follow it.")
            .asks::<Group>("group", false, "Only those in it.")
            .asks::<Version>("version", false, "Only those that run it, as it is spelled.")
            .asks_plain("skip", number(u64::from(u32::MAX)), "How many to leave out.")
            .asks_plain("limit", number(u64::from(u32::MAX)), "How many to give; more than 10000 is 10000.")
            .gives::<NodeList>(),
        Endpoint::new(Get, "/api/v1/nodes/{node}", "A node, and what it reported.")
            .operator(Viewer)
            .gives::<NodeShow>()
            .fails(&[404]),
        Endpoint::new(Get, "/api/v1/nodes/{node}/explain", "Why a node is or is not let go now.")
            .operator(Viewer)
            .gives::<NodeExplain>()
            .fails(&[404]),
        Endpoint::new(Post, "/api/v1/nodes/{node}/remove", "Forgets a node that is gone for good.")
            .operator(Operator)
            .takes::<NodeRemove>()
            .done()
            .fails(&[404]),
        Endpoint::new(
            Delete,
            "/api/v1/nodes/{node}/credential",
            "Lets a node that lost its secret be heard.",
        )
        .operator(Operator)
        .done()
        .fails(&[404]),
        Endpoint::new(
            Get,
            "/api/v1/stats/events",
            "How many events there were, by day, channel, release and kind.",
        )
        .operator(Viewer)
        .asks_plain("from", day(), "The first day (UTC); 30 days before the last one if not given.")
        .asks_plain("to", day(), "The last day; today if not given.")
        .gives::<EventStats>(),
        Endpoint::new(
            Get,
            "/api/v1/stats/versions",
            "How many nodes of a channel ran which version, by hour.",
        )
        .operator(Viewer)
        .asks::<Channel>("channel", true, "Which channel.")
        .asks_plain("from", day(), "The first day (UTC); 7 days before the last one if not given.")
        .asks_plain("to", day(), "The last day; today if not given.")
        .gives::<VersionStats>(),
        Endpoint::new(Get, "/api/v1/audit", "The audit log, newest first.")
            .operator(Viewer)
            .asks_plain("before", number(u64::MAX), "Only entries before this one.")
            .asks_plain("limit", number(u64::from(u32::MAX)), "How many to give; more than 10000 is 10000.")
            .gives::<AuditLog>(),
    ]
}

fn enrolment() -> Vec<Endpoint> {
    vec![
        Endpoint::new(
            Put,
            "/api/v1/nodes/{node}/group",
            "Places a node in a group, whatever it says itself.",
        )
        .operator(Operator)
        .takes::<NodeGroup>()
        .done()
        .fails(&[404]),
        Endpoint::new(Delete, "/api/v1/nodes/{node}/group", "Lets a node's own word for its group count.")
            .operator(Operator)
            .done()
            .fails(&[404]),
        Endpoint::new(Put, "/api/v1/nodes/{node}/revocation", "Hears a node no more.")
            .operator(Operator)
            .takes::<NodeRevoke>()
            .gives::<NodeRevoked>()
            .fails(&[409]),
        Endpoint::new(Delete, "/api/v1/nodes/{node}/revocation", "Hears a node again.")
            .operator(Operator)
            .done()
            .fails(&[404]),
        Endpoint::new(Get, "/api/v1/enrolment-tokens", "The tokens that let nodes enrol, newest first.")
            .operator(Viewer)
            .gives::<EnrolmentList>(),
        Endpoint::new(Post, "/api/v1/enrolment-tokens", "Makes a token that lets nodes enrol.")
            .operator(Operator)
            .takes::<EnrolmentCreate>()
            .gives::<EnrolmentCreated>(),
        Endpoint::new(Delete, "/api/v1/enrolment-tokens/{id}", "Ends such a token for ever.")
            .operator(Operator)
            .done()
            .fails(&[404, 409]),
    ]
}

fn locks() -> Vec<Endpoint> {
    vec![
        Endpoint::new(Get, "/api/v1/locks", "The reboot locks, by group.")
            .operator(Viewer)
            .gives::<LockList>(),
        Endpoint::new(Get, "/api/v1/locks/{group}", "One group's reboot lock.")
            .operator(Viewer)
            .gives::<LockInfo>()
            .fails(&[404]),
        Endpoint::new(Post, "/api/v1/locks/{group}/release", "Takes a permit away.")
            .operator(Operator)
            .takes::<LockRelease>()
            .gives::<LockInfo>()
            .fails(&[404, 409, 503]),
        Endpoint::new(Post, "/api/v1/locks/{group}/import", "Takes over the lock of another system.")
            .operator(Operator)
            .takes::<LockImport>()
            .gives::<LockInfo>()
            .fails(&[404, 409]),
        Endpoint::new(Get, "/api/v1/lock-policy", "The lock policies of all groups.")
            .operator(Viewer)
            .gives::<Policies>(),
        Endpoint::new(Put, "/api/v1/lock-policy", "Sets lock policies.")
            .operator(Operator)
            .takes::<PolicySet>()
            .gives::<Policies>()
            .fails(&[409]),
    ]
}

fn server() -> Vec<Endpoint> {
    vec![
        Endpoint::new(Get, "/metrics", "Figures for Prometheus.").operator(Viewer).text("text/plain"),
        Endpoint::new(Get, "/healthz", "The server runs.").text("text/plain"),
        Endpoint::new(Get, "/readyz", "Nodes can be served; 503 says why not.").text("text/plain").or_not(),
        Endpoint::new(Get, "/openapi.json", "This document.").text("application/json"),
    ]
}
