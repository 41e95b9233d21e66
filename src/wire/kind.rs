//! Code tables: frame kinds, statuses, entity types. Retired codes are never used again.

code_table! {
    /// What a frame is. A reply carries its request's kind and [`super::Flags::REPLY`].
    pub enum Kind: u8 {
        // Session, on both EtherTypes.
        /// Opens a connection; the reply settles identity, incarnation, features, MTU, credits.
        Connect = 0x01 => "connect",
        /// Closes a connection.
        Disconnect = 0x02 => "disconnect",
        /// Initiator: what is still missing of the reply to a command?
        Probe = 0x03 => "probe",
        /// Responder: how far a command has come and which bytes of its request are missing.
        Progress = 0x04 => "progress",
        /// Responder: something changed; repeated until acknowledged.
        Notify = 0x05 => "notify",
        /// Initiator: a notification has arrived.
        NotifyAck = 0x06 => "notify-ack",
        /// The receiver knows no such connection, version or kind; the status says which.
        Refused = 0x07 => "refused",
        /// Liveness of an idle connection, and the empty request.
        KeepAlive = 0x08 => "keep-alive",

        // Fabric services, on the management EtherType.
        /// Multicast: who are the fabric services here?
        Discover = 0x10 => "discover",
        /// Fabric services answer a discover.
        Here = 0x11 => "here",
        /// A host or unit registers itself.
        Register = 0x12 => "register",
        /// The hosts and units of the sender's cluster (Fig. 5, block 505).
        Membership = 0x13 => "membership",
        /// The allocation application tells who owns a unit (Fig. 3, field 312).
        UnitOwnership = 0x14 => "unit-ownership",
        /// Parts of a host's table for fabric services to keep (Fig. 5, block 530).
        Deposit = 0x15 => "deposit",
        /// Which host of a cluster has this name?
        FindHost = 0x19 => "find-host",

        // RMA to RMA, on the management EtherType.
        /// The peer's table stamp and digest (Fig. 5, block 510).
        TableStamp = 0x20 => "table-stamp",
        /// A page of the peer's table (Fig. 5, block 515).
        TableRows = 0x21 => "table-rows",
        /// A table, or what changed in it, is offered to a peer (Fig. 5, block 530).
        Offer = 0x22 => "offer",
        /// The allocation lease, asked of a voter: an RMA or a UMS.
        Lease = 0x23 => "lease",
        /// Cluster-wide settings for a voter to keep.
        Settle = 0x24 => "settle",
        /// Digests of parts of the peer's table (Fig. 5, block 515).
        TableDigests = 0x25 => "table-digests",
        /// Does the owner's operating system use rows that it is about to lose?
        InUse = 0x2c => "in-use",

        // UMS, on the management EtherType.
        /// The controllers of a unit (Fig. 5, block 520).
        Controllers = 0x30 => "controllers",
        /// The ownership registers of a unit.
        Registers = 0x31 => "registers",
        /// One transaction on a unit's ownership registers: the commit point of an allocation.
        CompareAndSet = 0x32 => "compare-and-set",
        /// Registers for a unit that has lost its own.
        Restore = 0x33 => "restore",
        /// A device, or the unit, is moved to another cluster.
        Move = 0x34 => "move",

        // I/O controllers, on the service EtherType.
        /// The devices of a controller (Fig. 5, block 520).
        Devices = 0x40 => "devices",
        /// One device's facts and its owners.
        Identify = 0x41 => "identify",
        /// Reads a range.
        Read = 0x42 => "read",
        /// Writes a range; with [`super::Flags::FUA`] it is durable before it is answered.
        Write = 0x43 => "write",
        /// Everything acknowledged before is durable before this is answered.
        Flush = 0x44 => "flush",
        /// The range's content is no longer needed.
        Discard = 0x45 => "discard",
        /// Writes zeroes to a range.
        WriteZeroes = 0x46 => "write-zeroes",
        /// Tries a path of the connection, and what frames it carries; the reply is as long.
        Path = 0x47 => "path",
    }
}

impl Kind {
    /// Whether the kind belongs on the service EtherType only (`Some(true)`), on the management
    /// EtherType only (`Some(false)`), or on both (`None`).
    pub const fn is_service(self) -> Option<bool> {
        match self.code() {
            0x00..=0x0f => None,
            0x10..=0x3f => Some(false),
            _ => Some(true),
        }
    }

    /// Whether the kind is a request that a session delivers exactly once and answers.
    pub const fn is_request(self) -> bool {
        matches!(self, Self::KeepAlive) || (self.code() >= 0x12 && !matches!(self, Self::Path))
    }
}

code_table! {
    /// How a request ended.
    pub enum Status: u16 {
        /// Done.
        Ok = 0 => "ok",
        /// The request cannot be parsed or contradicts itself.
        BadRequest = 1 => "bad request",
        /// The kind is not served here.
        Unsupported = 2 => "unsupported",
        /// The protocol version is not spoken here.
        BadVersion = 3 => "unsupported protocol version",
        /// No such connection, or it has been replaced.
        UnknownConnection = 4 => "unknown connection",
        /// Sender and receiver are of different clusters.
        WrongCluster = 5 => "another cluster",
        /// The receiver is not the entity that the sender expects at this address.
        WrongIdentity = 6 => "another identity",
        /// A limit of the receiver is reached; try again.
        Busy = 7 => "busy",
        /// No such controller.
        NoController = 8 => "no such controller",
        /// No such device.
        NoDevice = 9 => "no such device",
        /// The range is outside the device.
        OutOfRange = 10 => "out of range",
        /// The range is not aligned to the device's blocks.
        Misaligned = 11 => "not aligned to blocks",
        /// The sender does not own the row, or the I/O names no extent of a device that has some.
        NotOwner = 12 => "not an owner",
        /// The command carries another ownership epoch than the register's.
        StaleEpoch = 13 => "stale epoch",
        /// A register's epoch is not the expected one.
        Conflict = 14 => "epoch conflict",
        /// The change would break the ownership hierarchy.
        Hierarchy = 15 => "ownership hierarchy",
        /// The change carries an older term than the register's.
        OlderTerm = 16 => "older term",
        /// No such row.
        NoRow = 17 => "no such row",
        /// The unit has lost its registers and serves no I/O until they are restored.
        NoRegisters = 18 => "registers not restored",
        /// The backend failed.
        MediaError = 19 => "media error",
        /// The backend has no space left.
        NoSpace = 20 => "no space",
        /// The device is read-only.
        ReadOnly = 21 => "read-only",
        /// Registered, but no cluster assigned yet.
        Pending = 22 => "pending assignment",
        /// The responder is starting or stopping; try again.
        NotReady = 23 => "not ready",
        /// The responder could not persist the change; nothing was changed.
        NotPersisted = 24 => "not persisted",
        /// The range overlaps an extent of the device.
        Overlap = 25 => "overlaps an extent",
        /// The term is further above every known one than any honest term can be.
        FarTerm = 26 => "term too far ahead",
        /// What the request goes on with, or builds on, is not what the receiver has.
        BeginAgain = 27 => "begin again",
        /// The row was moved to another cluster.
        Elsewhere = 30 => "moved to another cluster",
        /// The device has extents.
        Carved = 31 => "has extents",
        /// The unit keeps registers for as many clusters as it can.
        TooManyClusters = 32 => "too many clusters",
        /// Fabric services know no such cluster.
        NoCluster = 33 => "no such cluster",
        /// The cluster has no such host.
        NoHost = 34 => "no such host",
        /// Several hosts of the cluster are called so.
        Ambiguous = 35 => "ambiguous name",
    }
}

code_table! {
    /// What a row or a registration describes (Fig. 3 field 306, Fig. 4 field 406).
    pub enum EntityType: u8 {
        /// A host with an RMA.
        Host = 1 => "host",
        /// An I/O unit.
        Unit = 2 => "I/O unit",
        /// An I/O controller of a unit.
        Controller = 3 => "I/O controller",
        /// An I/O device of a controller.
        Device = 4 => "I/O device",
        /// An address range of a device that is allocated on its own.
        Extent = 5 => "extent",
    }
}

code_table! {
    /// Who opens a connection.
    pub enum Role: u8 {
        /// An RMA.
        Host = 1 => "host",
        /// An I/O unit.
        Unit = 2 => "unit",
        /// Fabric services.
        Fabric = 3 => "fabric services",
    }
}

code_table! {
    /// How far a command has come at the responder.
    pub enum Progress: u8 {
        /// Not one segment of the request has arrived.
        Unknown = 0 => "unknown",
        /// Some segments of the request are missing.
        Incomplete = 1 => "incomplete",
        /// The request is complete and being executed.
        Executing = 2 => "executing",
        /// The command was answered and the initiator has said that it has the answer.
        Forgotten = 3 => "forgotten",
    }
}

code_table! {
    /// What a notification is about.
    pub enum Event: u8 {
        /// The unit's controllers changed.
        ControllersChanged = 1 => "controllers changed",
        /// A controller's devices changed.
        DevicesChanged = 2 => "devices changed",
        /// The unit's ownership registers changed.
        RegistersChanged = 3 => "registers changed",
        /// The cluster's membership changed.
        MembershipChanged = 4 => "membership changed",
    }
}
