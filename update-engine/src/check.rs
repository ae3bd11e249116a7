//! Steps 4 and 5, channel and download: the server says when, the signed metadata says what.
//!
//! Metadata is brought up to date at every check, whatever the server answers: a server that holds updates back is
//! found out when its metadata expires.

use crate::config::settings::Identity;
use crate::error::chain;
use crate::network::metadata::MetadataSource;
use crate::network::{Client, NetworkError};
use crate::operations::Context;
use jiff::Timestamp;
use machine::{Answer, Checked, Failure, FailureKind, Offer, Release};
use protocol::id::NodeId;
use protocol::version::Version;
use protocol::wire::{Decision, SCHEMA, UpdateAnswer, UpdateCheck};
use std::path::PathBuf;
use std::sync::Arc;
use trust::{Authorized, ErrorKind, NodeFacts, Trust, TrustError};

/// Asks the server and judges its answer.
#[derive(Debug)]
pub struct Checker {
    /// The server.
    pub client: Client,
    /// Who asks.
    pub node: NodeId,
    /// What it follows.
    pub identity: Identity,
    /// Where trusted metadata is kept.
    pub trust_dir: PathBuf,
    /// The trust anchor.
    pub anchor: PathBuf,
}

/// The answer, and the evidence for what it offers.
pub type Judged = (Checked, Option<Authorized>);

impl Checker {
    /// One check.
    ///
    /// # Errors
    /// A [`Failure`] of the network, or of the node where its trust anchor or metadata folder is unusable. What must
    /// not be believed is no failure but an answer: refused.
    pub async fn check(
        &self,
        context: &Context,
        interactive: bool,
        pending: Option<&Release>,
    ) -> Result<Judged, Failure> {
        let question = UpdateCheck {
            schema: SCHEMA,
            node: self.node.clone(),
            channel: self.identity.channel.clone(),
            group: self.identity.group.clone(),
            arch: self.identity.arch.clone(),
            version: context.running.clone(),
            slot: context.facts.slot,
            boot_id: context.facts.boot_id.clone(),
            state: context.state,
            interactive,
            quarantine: Some(context.quarantine.clone()),
        };
        let answer = self.client.update_check(&question).await.map_err(|error| network_failure(&error))?;
        let retry_after_s = answer.retry_after_s;
        let judged =
            |answer, withdrawn, authorized| (Checked { answer, withdrawn, retry_after_s }, authorized);
        match self.judge(context, &answer, pending).await {
            Ok((answer, withdrawn, authorized)) => Ok(judged(answer, withdrawn, authorized)),
            Err(error) => match error.kind() {
                ErrorKind::Refused => Ok(judged(Answer::Refused(chain(&error)), false, None)),
                ErrorKind::Network => Err(Failure::new(FailureKind::Network, chain(&error))),
                ErrorKind::Local => Err(Failure::new(FailureKind::Node, chain(&error))),
            },
        }
    }

    async fn judge(
        &self,
        context: &Context,
        answer: &UpdateAnswer,
        pending: Option<&Release>,
    ) -> Result<(Answer, bool, Option<Authorized>), TrustError> {
        let mut trust = Trust::open(&self.trust_dir, &self.anchor)?;
        let source = Arc::new(MetadataSource::new(self.client.clone()));
        let refreshed = trust.refresh(source, Timestamp::now()).await?;
        tracing::debug!(?refreshed, "metadata is up to date");
        let version = match (answer.decision, &answer.version) {
            (Decision::Update, Some(version)) => Some(version),
            _ => None,
        };
        if version.is_none() && pending.is_none() {
            return Ok((without_offer(answer), false, None));
        }
        let channel = trust.channel(&self.identity.channel).await?;
        let withdrawn = pending.is_some_and(|release| !channel.versions.contains(&release.version));
        let Some(version) = version else { return Ok((without_offer(answer), withdrawn, None)) };
        let manifest = trust.manifest(version, &self.identity.arch).await?;
        Ok(match trust::authorize(manifest, &channel, &self.facts(context)) {
            Err(refusal) => (Answer::Refused(chain(&refusal)), withdrawn, None),
            Ok(authorized) => (Answer::Offer(offer(&authorized, version)), withdrawn, Some(authorized)),
        })
    }

    fn facts(&self, context: &Context) -> NodeFacts {
        NodeFacts {
            channel: self.identity.channel.clone(),
            arch: self.identity.arch.clone(),
            running: context.running.clone(),
            newest_confirmed: context.newest_confirmed.clone(),
        }
    }
}

fn offer(authorized: &Authorized, version: &Version) -> Offer {
    Offer {
        release: Release { version: version.clone(), digest: authorized.release_digest() },
        bytes_total: authorized.manifest().partitions.iter().map(|image| image.size).sum(),
    }
}

fn without_offer(answer: &UpdateAnswer) -> Answer {
    match answer.decision {
        Decision::Hold => Answer::Hold(answer.reason.clone()),
        Decision::Update | Decision::None => Answer::Nothing(answer.reason.clone()),
    }
}

/// A failure of the network, with the server's wish for the next try.
#[must_use]
pub fn network_failure(error: &NetworkError) -> Failure {
    Failure {
        kind: FailureKind::Network,
        detail: chain(error),
        retry_after_s: error.retry_after().map(|pause| pause.as_secs()),
    }
}
