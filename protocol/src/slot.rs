//! Steps 8 and 11, flip and boot: slots, their GPT attribute bits, and the one rule that picks the slot to boot.
//!
//! The bits and the rule are gptprio's (Chrome OS, CoreOS, Bottlerocket): bits 48 to 51 priority, 52 to 55
//! tries_left, 56 successful. The engine, the simulator and the boot loader all call [`select`]; there is no second
//! implementation to disagree with it.

use core::fmt;

/// One of the two places an OS image can live in. Never a place in a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "std", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Slot {
    /// The first slot: `BOOT-A` and `ROOT-A`.
    A,
    /// The second slot: `BOOT-B` and `ROOT-B`.
    B,
}

impl Slot {
    /// Both slots, A first.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// The slot that is not this one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// `"A"` or `"B"`, as in partition names and on the kernel command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A slot name that is neither `A` nor `B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownSlot;

impl fmt::Display for UnknownSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a slot: expected A or B")
    }
}

impl core::error::Error for UnknownSlot {}

impl core::str::FromStr for Slot {
    type Err = UnknownSlot;

    fn from_str(text: &str) -> Result<Self, UnknownSlot> {
        match text {
            "A" | "a" => Ok(Self::A),
            "B" | "b" => Ok(Self::B),
            _ => Err(UnknownSlot),
        }
    }
}

/// The 64 attribute bits of a GPT entry, of which this type changes bits 48 to 56 and preserves the rest.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Attributes(u64);

const PRIORITY_SHIFT: u32 = 48;
const TRIES_SHIFT: u32 = 52;
const SUCCESSFUL_SHIFT: u32 = 56;
const NIBBLE: u64 = 0xf;

impl Attributes {
    /// The highest priority and the most tries that four bits hold.
    pub const MAX: u8 = 15;

    /// Takes the attributes as they stand in a GPT entry.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The attributes as they stand in a GPT entry.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// 0 (never booted) to 15.
    #[must_use]
    pub const fn priority(self) -> u8 {
        ((self.0 >> PRIORITY_SHIFT) & NIBBLE) as u8
    }

    /// How many more boots may be attempted before the slot must have been confirmed: 0 to 15.
    #[must_use]
    pub const fn tries_left(self) -> u8 {
        ((self.0 >> TRIES_SHIFT) & NIBBLE) as u8
    }

    /// Whether a boot from this slot was confirmed.
    #[must_use]
    pub const fn successful(self) -> bool {
        (self.0 >> SUCCESSFUL_SHIFT) & 1 == 1
    }

    /// The same bits with another priority; values above 15 count as 15.
    #[must_use]
    pub const fn with_priority(self, priority: u8) -> Self {
        Self(self.0 & !(NIBBLE << PRIORITY_SHIFT) | (clamp(priority) << PRIORITY_SHIFT))
    }

    /// The same bits with other tries; values above 15 count as 15.
    #[must_use]
    pub const fn with_tries_left(self, tries: u8) -> Self {
        Self(self.0 & !(NIBBLE << TRIES_SHIFT) | (clamp(tries) << TRIES_SHIFT))
    }

    /// The same bits with `successful` set or cleared.
    #[must_use]
    pub const fn with_successful(self, successful: bool) -> Self {
        Self(self.0 & !(1 << SUCCESSFUL_SHIFT) | ((successful as u64) << SUCCESSFUL_SHIFT))
    }

    /// Whether [`select`] may choose an entry with these bits.
    #[must_use]
    pub const fn bootable(self) -> bool {
        self.priority() > 0 && (self.tries_left() > 0 || self.successful())
    }

    /// A slot that the rule cannot choose: priority 0, no tries, not successful. What a slot is before its first
    /// byte changes, and what a slot whose boot failed becomes.
    #[must_use]
    pub const fn invalidated(self) -> Self {
        self.with_priority(0).with_tries_left(0).with_successful(false)
    }

    /// The slot to boot next: priority 2, `tries` tries, not yet successful.
    #[must_use]
    pub const fn activated(self, tries: u8) -> Self {
        self.with_priority(2).with_tries_left(tries).with_successful(false)
    }

    /// The running slot while another one is activated: priority 1, the rest as it was.
    #[must_use]
    pub const fn fallback(self) -> Self {
        self.with_priority(1)
    }

    /// A slot whose boot was confirmed: successful, no tries to spend.
    #[must_use]
    pub const fn confirmed(self) -> Self {
        self.with_successful(true).with_tries_left(0)
    }
}

const fn clamp(value: u8) -> u64 {
    if value > Attributes::MAX { Attributes::MAX as u64 } else { value as u64 }
}

impl fmt::Debug for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "priority={} tries_left={} successful={}",
            self.priority(),
            self.tries_left(),
            self.successful()
        )?;
        let other = Self(self.0).with_priority(0).with_tries_left(0).with_successful(false).0;
        if other != 0 { write!(f, " other={other:#x}") } else { Ok(()) }
    }
}

/// What boot selection decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The number of the chosen GPT entry, as it was passed in.
    pub entry: u32,
    /// The attributes that entry must have on the disk, in both tables, before its kernel starts: one try fewer.
    /// `None` where nothing is to be written.
    pub write: Option<Attributes>,
}

/// Boot selection: which of these GPT entries boots next, and what must be written before it does.
///
/// Candidates have priority above 0 and either tries left or `successful`; the highest priority wins, ties go to the
/// lowest entry number. A try is spent whenever there is one, even from a successful slot. This is gptprio's rule
/// (`grub-core/commands/gptprio.c`), and the order of the iterator does not matter.
#[must_use]
pub fn select(entries: impl IntoIterator<Item = (u32, Attributes)>) -> Option<Choice> {
    let best = entries.into_iter().filter(|(_, attributes)| attributes.bootable()).reduce(|best, next| {
        let wins =
            (next.1.priority(), core::cmp::Reverse(next.0)) > (best.1.priority(), core::cmp::Reverse(best.0));
        if wins { next } else { best }
    });
    best.map(|(entry, attributes)| Choice {
        entry,
        write: match attributes.tries_left() {
            0 => None,
            tries => Some(attributes.with_tries_left(tries - 1)),
        },
    })
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attributes(priority: u8, tries: u8, successful: bool) -> Attributes {
        Attributes::default().with_priority(priority).with_tries_left(tries).with_successful(successful)
    }

    /// The vectors of GRUB's `tests/gptprio_test.in`, in our words.
    #[test]
    fn gptprio_vectors() {
        // No candidate.
        assert_eq!(select([(1, attributes(0, 0, false)), (2, attributes(0, 0, false))]), None);
        // Tries are spent one by one, then the slot is out and the successful one serves.
        let good = (1, attributes(1, 0, true));
        for tries in (1..=3).rev() {
            let choice = select([good, (2, attributes(2, tries, false))]).unwrap();
            assert_eq!((choice.entry, choice.write.map(Attributes::tries_left)), (2, Some(tries - 1)));
        }
        assert_eq!(select([good, (2, attributes(2, 0, false))]), Some(Choice { entry: 1, write: None }));
        // Successful with tries left: booted, and a try is spent all the same.
        let both = select([(3, attributes(1, 2, true))]).unwrap();
        assert_eq!(both.write, Some(attributes(1, 1, true)));
        // Priority 0 never boots, successful or not.
        assert_eq!(select([(3, attributes(0, 15, true))]), None);
        // Ties go to the lowest entry, whatever order they come in.
        let tie = [(5, attributes(3, 0, true)), (2, attributes(3, 0, true)), (9, attributes(3, 0, true))];
        assert_eq!(select(tie).unwrap().entry, 2);
    }

    #[test]
    fn other_bits_are_preserved() {
        let all = Attributes::from_bits(u64::MAX);
        let mask = !(0x1ff_u64 << 48);
        for changed in [all.invalidated(), all.activated(3), all.fallback(), all.confirmed()] {
            assert_eq!(changed.bits() & mask, mask);
        }
    }

    proptest! {
        #[test]
        fn fields_are_independent(bits: u64, priority in 0_u8..=15, tries in 0_u8..=15, successful: bool) {
            let changed = Attributes::from_bits(bits).with_priority(priority).with_tries_left(tries)
                .with_successful(successful);
            prop_assert_eq!((changed.priority(), changed.tries_left(), changed.successful()),
                (priority, tries, successful));
            prop_assert_eq!(changed.bits() & !(0x1ff << 48), bits & !(0x1ff << 48));
        }

        #[test]
        fn the_choice_is_the_best_candidate(bits in proptest::collection::vec(any::<u64>(), 0..8)) {
            let entries: Vec<_> = (0_u32..).zip(bits.into_iter().map(Attributes::from_bits)).collect();
            let choice = select(entries.iter().copied());
            let best = entries.iter().filter(|(_, a)| a.bootable()).map(|(_, a)| a.priority()).max();
            match choice {
                None => prop_assert_eq!(best, None),
                Some(choice) => {
                    let chosen = entries[choice.entry as usize].1;
                    prop_assert_eq!(Some(chosen.priority()), best);
                    prop_assert!(entries.iter().all(|(n, a)| *n >= choice.entry || !a.bootable()
                        || a.priority() < chosen.priority()));
                    prop_assert_eq!(choice.write.is_some(), chosen.tries_left() > 0);
                }
            }
        }
    }
}
