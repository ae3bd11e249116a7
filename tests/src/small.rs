//! All steps, small: a world with an image of a few MiB and an update of it, for tests that need many.

use crate::images::{Kind, Tree};
use crate::node::{Node, Setup};
use crate::world::{Release, World};
use anyhow::Result;
use std::path::PathBuf;

/// Bytes of files in an image.
const FILES: usize = 3 << 20;
/// Length of an image.
pub const IMAGE: u64 = 8 << 20;
/// Arguments of `image-tools disk create` that keep the other partitions small.
pub const DISK: &[&str] = &["--esp-size", "2M", "--boot-size", "4M", "--state-size", "2M"];
/// Length of a root partition.
pub const SLOT: &str = "12M";
/// The same in the world of [`Small::large`].
const LARGE_SLOT: &str = "44M";

/// A world where 1.0.0 runs and `alpha` holds 1.1.0.
#[derive(Debug)]
pub struct Small {
    /// The operator.
    pub world: World,
    /// The files of 1.1.0.
    pub tree: Tree,
    /// The image of 1.0.0.
    pub v1: PathBuf,
    /// The image of 1.1.0.
    pub v2: PathBuf,
    /// The release 1.1.0.
    pub release: Release,
    /// Length of the images.
    pub size: u64,
}

impl Small {
    /// Makes it; 1.1.0 changes a fifth of the files of 1.0.0.
    ///
    /// # Errors
    /// Where a program fails.
    pub fn new() -> Result<Self> {
        Self::new_in(World::new()?)
    }

    /// The same in a world that is there.
    ///
    /// # Errors
    /// Where a program fails.
    pub fn new_in(world: World) -> Result<Self> {
        let old = Tree::generate(11, FILES);
        let new = old.updated(12, 20);
        Self::with_trees(world, &old, new, IMAGE)
    }

    /// The same with a 1.1.0 that shares nothing with 1.0.0, so that all of it must be fetched.
    ///
    /// # Errors
    /// Where a program fails.
    pub fn all_new() -> Result<Self> {
        Self::with_trees(World::new()?, &Tree::generate(13, FILES), Tree::generate(14, FILES), IMAGE)
    }

    /// The same, of many segments, for tests of how a download goes on.
    ///
    /// # Errors
    /// Where a program fails.
    pub fn large() -> Result<Self> {
        Self::large_in(World::new()?)
    }

    /// The same in a world that is there.
    ///
    /// # Errors
    /// Where a program fails.
    pub fn large_in(world: World) -> Result<Self> {
        Self::with_trees(world, &Tree::generate(15, FILES), Tree::generate(16, 10 * FILES), 5 * IMAGE)
    }

    fn with_trees(world: World, old: &Tree, new: Tree, size: u64) -> Result<Self> {
        let v1 = world.folder().join("v1.img");
        let v2 = world.folder().join("v2.img");
        old.write_image(&v1, size, Kind::Bytes)?;
        new.write_image(&v2, size, Kind::Bytes)?;
        let release = world.publish("1.1.0", &v2, "alpha", FAST)?;
        Ok(Self { world, tree: new, v1, v2, release, size })
    }

    /// A further release, with some files of the last one changed, on `alpha`.
    ///
    /// # Errors
    /// Where a program fails.
    pub fn publish_next(&self, version: &str, seed: u64) -> Result<(Release, PathBuf)> {
        let image = self.world.folder().join(format!("{version}.img"));
        self.tree.updated(seed, 20).write_image(&image, self.size, Kind::Bytes)?;
        let release = self.world.publish(version, &image, "alpha", FAST)?;
        Ok((release, image))
    }

    /// How a node of this world is made.
    #[must_use]
    pub fn setup(&self) -> Setup<'_> {
        Setup {
            root: &self.v1,
            version: "1.0.0",
            slot_size: if self.size == IMAGE { SLOT } else { LARGE_SLOT },
            disk_arguments: DISK,
            channel: "alpha",
            strategy: "off",
            config: "",
        }
    }

    /// A node that runs 1.0.0, follows `alpha` and talks to `server`.
    ///
    /// # Errors
    /// Where its disk cannot be made.
    pub fn node(&self, name: &str, server: &str) -> Result<Node<'_>> {
        Node::new(&self.world, name, server, &self.setup())
    }
}

/// Arguments of `image-tools release build` for tests: quick instead of small.
pub const FAST: &[&str] = &["--level", "3"];
