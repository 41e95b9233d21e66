//! What `rma unit` and `rma-unitd` say to each other over the control socket `unitd.sock`, a JSON
//! line each. GUIDs, MAC addresses and clusters are strings; sizes are bytes.

use serde::{Deserialize, Serialize};

/// What `rma unit` asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum UnitRequest {
    /// The unit, its controllers, devices, registers, connections and counters.
    Status,
    /// Read the configuration again.
    Reload,
}

/// What `rma-unitd` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum UnitReply {
    /// To [`UnitRequest::Status`].
    Status(Box<UnitStatus>),
    /// To [`UnitRequest::Reload`]: the new configuration is in force.
    Reloaded {
        /// What has changed, a line for people each; empty if nothing has.
        changes: Vec<String>,
        /// Keys that differ and take effect at the next start.
        at_next_start: Vec<String>,
    },
    /// Nothing was changed.
    Error {
        /// One line for people: what is wrong, where and what to do.
        message: String,
    },
}

/// The unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitStatus {
    /// What it is.
    pub guid: String,
    /// Its name.
    pub name: String,
    /// Counts its starts.
    pub incarnation: u64,
    /// Counts its changes since it started.
    pub change: u64,
    /// The cluster it serves; `None` before one is assigned.
    pub cluster: Option<String>,
    /// Which assignment made it that.
    #[serde(default)]
    pub assignment: u64,
    /// Other clusters that it keeps registers of: devices were moved to them, or it was theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guests: Vec<String>,
    /// Whether fabric services answer.
    pub fabric_up: bool,
    /// The network interfaces, separated by commas.
    pub interface: String,
    /// The address of the first.
    pub mac: String,
    /// The addresses of all.
    pub macs: Vec<String>,
    /// `up`, `down` or `gone`.
    pub link: String,
    /// The most bytes of a frame behind its Ethernet header.
    pub mtu: u16,
    /// Whether the ownership registers are lost; then no I/O is served.
    pub registers_lost: bool,
    /// The highest term seen.
    pub term: u64,
    /// Who owns the unit as a whole.
    pub register: Option<RegisterInfo>,
    /// Disk operations under way.
    pub in_flight: usize,
    /// Its controllers by number.
    pub controllers: Vec<ControllerInfo>,
    /// Its connections.
    pub connections: Vec<ConnectionInfo>,
    /// Frames received and sent since the start, management traffic.
    pub management: TrafficInfo,
    /// Frames received and sent since the start, service traffic.
    pub service: TrafficInfo,
}

/// An ownership register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterInfo {
    /// `unallocated`, `dedicated` or `shared`.
    pub ownership: String,
    /// The owning hosts' GUIDs.
    pub owners: Vec<String>,
    /// Counts its changes.
    pub epoch: u64,
    /// Term of the last change.
    pub term: u64,
    /// The host that made it; `None` before the first.
    pub writer: Option<String>,
}

/// A controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerInfo {
    /// What it is.
    pub guid: String,
    /// Its number.
    pub ioc: u16,
    /// Its name.
    pub name: String,
    /// Its model.
    pub model: String,
    /// Who owns it; `None` where the registers are lost.
    pub register: Option<RegisterInfo>,
    /// Its devices by number.
    pub devices: Vec<DeviceInfo>,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// What it is.
    pub guid: String,
    /// Its number.
    pub iod: u16,
    /// Its name.
    pub name: String,
    /// Its vendor.
    pub vendor: String,
    /// Its model.
    pub model: String,
    /// Its serial number.
    pub serial: String,
    /// Its size.
    pub size_bytes: u64,
    /// Its logical block size.
    pub block_size: u32,
    /// Names of its features.
    pub features: Vec<String>,
    /// `file`, `block` or `memory`.
    pub backend: String,
    /// The file or block device behind it.
    pub path: Option<String>,
    /// Who owns it; `None` where the registers are lost.
    pub register: Option<RegisterInfo>,
    /// The cluster that it was moved to, where it is not in the unit's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Operations performed since the start.
    pub operations: u64,
    /// Operations that failed since the start.
    pub errors: u64,
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionInfo {
    /// Its number, 16 hexadecimal digits.
    pub connection: String,
    /// The controller it is to; 0 for the unit management service.
    pub ioc: u16,
    /// Who opened it.
    pub peer: String,
    /// What that is: `host`, `unit` or `fabric services`.
    pub role: String,
    /// Its address.
    pub mac: String,
}

/// Frames of one EtherType since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficInfo {
    /// Frames received.
    pub received_frames: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames sent.
    pub sent_frames: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Received frames that the kernel had no room for.
    pub receive_overruns: u64,
    /// Frames that the interface did not take.
    pub send_drops: u64,
    /// Received frames that were dropped, by reason; reasons that did not occur are left out.
    pub drops: Vec<DropCount>,
}

/// Why frames were dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropCount {
    /// The reason.
    pub reason: String,
    /// How many.
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_look_as_documented() {
        assert_eq!(
            serde_json::to_string(&UnitRequest::Status).unwrap(),
            r#"{"request":"status"}"#
        );
        assert_eq!(
            serde_json::from_str::<UnitRequest>(r#"{"request":"reload"}"#).unwrap(),
            UnitRequest::Reload
        );
        assert!(serde_json::from_str::<UnitRequest>(r#"{"request":"format"}"#).is_err());
        let error = UnitReply::Error {
            message: "no".into(),
        };
        assert_eq!(
            serde_json::to_string(&error).unwrap(),
            r#"{"reply":"error","message":"no"}"#
        );
    }
}
