//! What `rma` and `rmad` say to each other over the control socket, a JSON line each.

use serde::{Deserialize, Serialize};

use crate::initiator::load::{LoadReport, LoadSpec};
use crate::initiator::stats::DeviceReport;
use crate::rma::request::{AdminError, AdminReply, AdminRequest, WatchEvent};

/// Version of everything that `-o json` prints. It grows when a field changes its meaning or
/// goes; new fields do not change it.
pub const SCHEMA: u32 = 1;

/// What `rma` asks `rmad`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// Something for the agent.
    Agent(AdminRequest),
    /// The same, though it takes from this host what is in use on it.
    Forced(AdminRequest),
    /// What is exported to this host's operating system, and where.
    Exports,
    /// What has been done on the devices that this host owns, and on the wire.
    Statistics,
    /// The udev rules for the devices that this host owns.
    UdevRules,
    /// How udev comes to the names of a device that this host owns.
    UdevTest {
        /// The device: GUID, its first digits (8 or more), address or name.
        device: String,
    },
    /// Take an owned device's block device from the system, though its unit does not answer.
    Abandon {
        /// The device: GUID, its first digits (8 or more), address or name.
        device: String,
    },
    /// What becomes of a device's I/O while its unit cannot be reached.
    Policy {
        /// The device: GUID, its first digits (8 or more), address or name.
        device: String,
        /// What it shall be from now on; `None`: only tell.
        change: Option<PolicyChange>,
    },
    /// Make load on a device that this host owns; answered with [`Answer::Load`] each second.
    Load {
        /// The device: GUID, its first digits (8 or more), address or name.
        device: String,
        /// What load.
        spec: LoadSpec,
    },
}

/// What `rmad` answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The agent's reply.
    Agent(AdminReply),
    /// Something happened (after a watch request).
    Event(WatchEvent),
    /// What is exported.
    Exports {
        /// By name.
        exports: Vec<ExportInfo>,
    },
    /// What has been done.
    Statistics {
        /// Devices that this host owns, by GUID.
        devices: Vec<DeviceStatistics>,
        /// Frames of the service EtherType.
        frames: FrameStatistics,
        /// The paths to controllers.
        paths: Vec<PathStatistics>,
    },
    /// The rules' text.
    UdevRules {
        /// As it is written into the rules directory.
        rules: String,
    },
    /// How udev comes to a device's names.
    UdevTest(UdevTest),
    /// The block device is gone; its name.
    Abandoned(String),
    /// What becomes of a device's I/O.
    Policy(PolicyInfo),
    /// How a load goes.
    Load {
        /// So far.
        report: LoadReport,
        /// Whether this was the last.
        over: bool,
    },
    /// The question cannot be answered.
    Error(AdminError),
}

/// What shall become of a device's I/O while its unit cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyChange {
    /// It waits, however long.
    Queue,
    /// It fails after so long.
    FailAfter {
        /// Seconds.
        seconds: u32,
    },
    /// As the configuration says.
    Default,
}

/// What becomes of a device's I/O while its unit cannot be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyInfo {
    /// The device's GUID.
    pub guid: String,
    /// The device's name.
    pub name: String,
    /// Seconds after which I/O fails; `null`: it waits for ever.
    pub fail_after_s: Option<u32>,
    /// Whether that is the configuration's word, and none of the device's own.
    pub is_default: bool,
}

/// A device as it is exported to this host's operating system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportInfo {
    /// The device's GUID.
    pub guid: String,
    /// The device's name.
    pub name: String,
    /// `ublk`, `nbd`, `nbd-socket`, or `none`.
    pub backend: String,
    /// Why this backend.
    pub reason: String,
    /// Where a client finds it.
    pub path: String,
    /// Size.
    pub size_bytes: u64,
    /// Logical block size.
    pub block_size_bytes: u32,
    /// `up`: the controller answers; `queueing`: it does not, and I/O waits; `failing`: for so long that
    /// I/O fails; or what is wrong.
    pub state: String,
    /// Seconds for which I/O waits for an unreachable unit before it fails; `null`: for ever.
    pub fail_after_s: Option<u32>,
    /// What is wrong with what its unit tells, though it is exported.
    #[serde(default)]
    pub warning: Option<String>,
}

/// What has been done on a device since this host owns it, or since `rmad` has started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceStatistics {
    /// The device's GUID.
    pub guid: String,
    /// The device's name.
    pub name: String,
    /// Counts, bytes and latencies.
    #[serde(flatten)]
    pub done: DeviceReport,
}

/// What has become of frames since `rmad` has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameStatistics {
    /// Frames received.
    pub received: u64,
    /// Frames that the kernel dropped because they were not taken in time.
    pub receive_drops: u64,
    /// Frames received that were too long or too short.
    pub malformed: u64,
    /// Frames sent.
    pub sent: u64,
    /// Frames that the interface did not take.
    pub send_drops: u64,
}

/// A path to a controller: a NIC of this host and one of its unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStatistics {
    /// The unit's GUID.
    pub unit: String,
    /// The controller's number.
    pub controller: u16,
    /// This host's interface.
    pub interface: String,
    /// The unit's NIC.
    pub mac: String,
    /// `used`, or `silent`: it does not answer, and is tried again and again.
    pub state: String,
    /// The most bytes of a frame behind its Ethernet header that it is known to carry.
    pub mtu_bytes: u16,
    /// How long an answer takes, where it was measured.
    pub round_trip_ns: Option<u64>,
    /// Commands that have taken it.
    pub commands: u64,
}

/// How udev comes to a device's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdevTest {
    /// The device's GUID.
    pub guid: String,
    /// The device's name.
    pub name: String,
    /// The kernel's name for it.
    pub node: String,
    /// The file with the rules; empty where none is written.
    pub rules_file: String,
    /// Its names and those of its partitions.
    pub links: Vec<UdevLink>,
    /// Which names it does not have, and why.
    pub notes: Vec<String>,
}

/// A name that a rule gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdevLink {
    /// The name.
    pub link: String,
    /// What it follows: the device, the place, the name.
    pub follows: String,
    /// The rule's line in the file.
    pub line: usize,
    /// The rule.
    pub rule: String,
    /// Where the name leads now; empty where it does not exist.
    pub target: String,
    /// Whether that is this device.
    pub is_right: bool,
}
