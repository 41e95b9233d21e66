//! Known bugs that the simulator plants, one at a time, to see whether it would notice them. Without
//! the feature `planted-bugs` (and no daemon is built with it) nothing of this is left.

/// A known bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Bug {
    /// A unit stamps changes by the date instead of counting them.
    StampByWallClock = 1,
    /// What a unit lists replaces who owns it.
    DiscoveryOutranksAllocation,
    /// A change of ownership does not wait for the old owner's writes.
    NoDrain,
    /// A change of ownership is answered before it is durable.
    AnsweredBeforeDurable,
    /// A unit that does not answer is removed from the table.
    SilenceRemoves,
    /// Equal tables get a new stamp when they meet.
    EqualContentRestamped,
    /// A unit takes I/O of any epoch.
    EpochNotChecked,
    /// A unit takes I/O of any host.
    OwnerNotChecked,
    /// A session that is resumed no longer knows what it has executed.
    WindowForgotten,
    /// A unit does not look at parents and children when it judges a change.
    HierarchyNotChecked,
    /// A unit makes a change whatever was there before.
    ExpectedNotCompared,
    /// An administrator is answered before the host has stored the table.
    AcknowledgedBeforeStored,
    /// A commit writes its root before its pages are durable.
    PagesNotSynced,
    /// A commit overwrites the root that is in force.
    RootInPlace,
    /// A flush is answered without flushing.
    FlushForgotten,
    /// A write with FUA is carried out as any other.
    FuaForgotten,
    /// Another host's table replaces newer rows.
    JoinTakesTheirs,
    /// An older register replaces a newer row.
    OlderRegisterTaken,
    /// A row that came back keeps owners that its parent no longer permits.
    NoReset,
    /// A commit that failed is reported as done.
    FailedCommitTaken,
    /// Fabric services put what a host offers in the place of what they keep.
    CentreTakesTheirs,
    /// A voter of the lease answers that it grants before that is durable.
    GrantedBeforeDurable,
    /// A voter of the lease forgets at a restart what it had promised.
    VoteForgotten,
    /// A holder of the lease goes on when its time is over.
    HolderGoesOn,
    /// A unit makes a change of an older term.
    OlderTermTaken,
    /// Tombstones are purged that not every host has stored.
    PurgedTooEarly,
    /// A voter keeps settings in its memory only.
    SettingsNotKept,
    /// A unit's lost registers are restored from any table.
    RestoredFromAnyTable,
    /// What hosts told of their tables before a unit lost its registers counts when they are restored.
    OldStampsTrusted,
}

#[cfg(feature = "planted-bugs")]
mod armed {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Bug;

    static ARMED: AtomicU8 = AtomicU8::new(0);

    impl Bug {
        /// Every bug with its name.
        pub const ALL: &[(Self, &str)] = &[
            (Self::StampByWallClock, "stamp-by-wall-clock"),
            (
                Self::DiscoveryOutranksAllocation,
                "discovery-outranks-allocation",
            ),
            (Self::NoDrain, "no-drain"),
            (Self::AnsweredBeforeDurable, "answered-before-durable"),
            (Self::SilenceRemoves, "silence-removes"),
            (Self::EqualContentRestamped, "equal-content-restamped"),
            (Self::EpochNotChecked, "epoch-not-checked"),
            (Self::OwnerNotChecked, "owner-not-checked"),
            (Self::WindowForgotten, "window-forgotten"),
            (Self::HierarchyNotChecked, "hierarchy-not-checked"),
            (Self::ExpectedNotCompared, "expected-not-compared"),
            (Self::AcknowledgedBeforeStored, "acknowledged-before-stored"),
            (Self::PagesNotSynced, "pages-not-synced"),
            (Self::RootInPlace, "root-in-place"),
            (Self::FlushForgotten, "flush-forgotten"),
            (Self::FuaForgotten, "fua-forgotten"),
            (Self::JoinTakesTheirs, "join-takes-theirs"),
            (Self::OlderRegisterTaken, "older-register-taken"),
            (Self::NoReset, "no-reset"),
            (Self::FailedCommitTaken, "failed-commit-taken"),
            (Self::CentreTakesTheirs, "centre-takes-theirs"),
            (Self::GrantedBeforeDurable, "granted-before-durable"),
            (Self::VoteForgotten, "vote-forgotten"),
            (Self::HolderGoesOn, "holder-goes-on"),
            (Self::OlderTermTaken, "older-term-taken"),
            (Self::PurgedTooEarly, "purged-too-early"),
            (Self::SettingsNotKept, "settings-not-kept"),
            (Self::RestoredFromAnyTable, "restored-from-any-table"),
            (Self::OldStampsTrusted, "old-stamps-trusted"),
        ];

        /// The bug of a name.
        pub fn named(name: &str) -> Option<Self> {
            let found = Self::ALL.iter().find(|(_, of)| *of == name);
            found.map(|(bug, _)| *bug)
        }
    }

    /// From now on there is this bug, in the whole process, and no other.
    pub fn plant(bug: Option<Bug>) {
        ARMED.store(bug.map_or(0, |bug| bug as u8), Ordering::SeqCst);
    }

    /// Whether there is this bug.
    pub fn is(bug: Bug) -> bool {
        ARMED.load(Ordering::Relaxed) == bug as u8
    }
}
#[cfg(feature = "planted-bugs")]
pub use armed::{is, plant};

/// Whether there is this bug: there is none.
#[cfg(not(feature = "planted-bugs"))]
pub const fn is(_: Bug) -> bool {
    false
}
