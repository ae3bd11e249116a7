//! The server of the miniature world: releases of every quality, a channel, a network that may be down.

use machine::{Answer, Checked, Failure, FailureKind, Offer, Release};
use protocol::digest::Sha256;
use protocol::version::Version;

/// What a release is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality {
    /// Boots, is healthy.
    Good,
    /// Starts and hangs; the watchdog reboots.
    Hangs,
    /// The loader cannot load it and leaves it out for this boot.
    Unloadable,
    /// Boots, fails its health checks.
    Sick,
    /// Its payload holds a wrong byte.
    Corrupt,
    /// The disk takes it and keeps something else.
    Miswritten,
}

/// The server, and the network to it.
#[derive(Clone, Debug)]
pub struct Server {
    releases: Vec<(Release, Quality)>,
    /// The release that the channel points at.
    pub channel: Option<usize>,
    pub online: bool,
    pub hold: bool,
    /// The channel file also lists every older release, so that a newer one does not withdraw what it supersedes.
    pub lists_older: bool,
}

impl Server {
    /// Releases 0, 1, 2… of these qualities, versions 1.0.0, 1.1.0, 1.2.0…; the channel points at the first.
    pub fn new(qualities: &[Quality]) -> Self {
        let mut server =
            Self { releases: Vec::new(), channel: Some(0), online: true, hold: false, lists_older: false };
        for quality in qualities {
            server.publish(*quality);
        }
        server
    }

    /// Adds a release, the newest so far; its number.
    pub fn publish(&mut self, quality: Quality) -> usize {
        let number = self.releases.len();
        let version: Version = format!("1.{number}.0").parse().unwrap();
        let digest = Sha256::of(format!("release {number}").as_bytes());
        self.releases.push((Release { version, digest }, quality));
        number
    }

    pub fn release(&self, index: usize) -> &Release {
        &self.releases[index].0
    }

    pub fn quality(&self, index: usize) -> Quality {
        self.releases[index].1
    }

    pub fn index(&self, release: &Release) -> usize {
        self.of_digest(&release.digest)
    }

    pub fn of_digest(&self, digest: &Sha256) -> usize {
        self.releases.iter().position(|(known, _)| known.digest == *digest).unwrap()
    }

    /// Points the channel at a release, by its number modulo how many there are.
    pub fn point(&mut self, number: usize) {
        self.channel = Some(number % self.releases.len());
    }

    /// What the driver would find out: the server's answer, held against the signed metadata.
    pub fn check(
        &self,
        pending: Option<&Release>,
        newest_confirmed: Option<&Version>,
        running: &Version,
    ) -> Result<Checked, Failure> {
        if !self.online {
            return Err(Failure::new(FailureKind::Network, "the server cannot be reached"));
        }
        let listed = self.channel.map(|index| self.release(index).clone());
        let withdrawn = pending.is_some_and(|pending| match &listed {
            Some(listed) if self.lists_older => listed.version.is_older_than(&pending.version),
            listed => listed.as_ref() != Some(pending),
        });
        let answer = match listed {
            _ if self.hold => Answer::Hold("not this node's turn".to_owned()),
            None => Answer::Nothing("the channel is empty".to_owned()),
            Some(release) if release.version == *running => Answer::Nothing("up to date".to_owned()),
            Some(release) if newest_confirmed.is_some_and(|newest| release.version.is_older_than(newest)) => {
                Answer::Refused(format!("{} is a downgrade", release.version))
            }
            Some(release) => Answer::Offer(Offer { release, bytes_total: 1 << 20 }),
        };
        Ok(Checked { answer, withdrawn, retry_after_s: None })
    }
}
