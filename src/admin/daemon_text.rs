//! Text for people of what the unit's and fabric services' daemons answer.

use super::fabric_protocol::FabricReply;
use super::text::{Style, list, printable, size};
use super::unit_protocol::UnitReply;
