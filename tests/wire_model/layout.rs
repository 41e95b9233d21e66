//! The fields of headers and bodies in the order of the wire.

use rma::wire::message::*;
use rma::wire::*;

use super::Field;

/// Gathers fields.
#[derive(Default)]
struct Fields(Vec<Field>);

impl Fields {
    fn add(&mut self, name: &'static str, bytes: &[u8], show: impl std::fmt::Display) {
        self.0.push(Field {
            name,
            bytes: bytes.to_vec(),
            show: show.to_string(),
            code: None,
        });
    }

    fn code(
        &mut self,
        name: &'static str,
        bytes: &[u8],
        show: impl std::fmt::Display,
        code: &'static str,
    ) {
        self.add(name, bytes, show);
        self.0.last_mut().expect("just added").code = Some(code);
    }

    fn u8(&mut self, name: &'static str, value: u8) {
        self.add(name, &[value], value);
    }

    fn u16(&mut self, name: &'static str, value: u16) {
        self.add(name, &value.to_be_bytes(), value);
    }

    fn u32(&mut self, name: &'static str, value: usize) {
        let value = u32::try_from(value).expect("fits");
        self.add(name, &value.to_be_bytes(), value);
    }

    fn u64(&mut self, name: &'static str, value: u64) {
        self.add(name, &value.to_be_bytes(), value);
    }

    fn hex64(&mut self, name: &'static str, value: u64) {
        self.add(name, &value.to_be_bytes(), format!("0x{value:016x}"));
    }

    fn flag(&mut self, name: &'static str, value: bool) {
        self.add(name, &[value.into()], u8::from(value));
    }

    fn guid(&mut self, name: &'static str, value: Guid) {
        self.add(name, &value.0.to_be_bytes(), value);
    }

    fn cluster(&mut self, name: &'static str, value: ClusterName) {
        let mut bytes = [0; 16];
        bytes[..value.as_str().len()].copy_from_slice(value.as_str().as_bytes());
        self.add(name, &bytes, value.as_str());
    }

    fn text(&mut self, name: &'static str, value: &str) {
        let mut bytes = vec![u8::try_from(value.len()).expect("fits")];
        bytes.extend_from_slice(value.as_bytes());
        self.add(name, &bytes, value);
    }

    fn macs(&mut self, macs: &[Mac]) {
        self.u32("rma.macs.count", macs.len());
        for mac in macs {
            self.add("rma.mac", &mac.0, mac);
        }
    }

    fn entity(&mut self, name: &'static str, value: EntityType) {
        self.code(name, &[value.code()], value.code(), value.name());
    }

    fn stamp(&mut self, names: [&'static str; 2], stamp: ObservationStamp) {
        self.u64(names[0], stamp.incarnation.0);
        self.u64(names[1], stamp.change);
    }

    fn observed(&mut self, stamp: ObservationStamp) {
        self.stamp(["rma.observed.incarnation", "rma.observed.change"], stamp);
    }

    fn listed(&mut self, stamp: ObservationStamp) {
        self.stamp(["rma.listed.incarnation", "rma.listed.change"], stamp);
    }

    fn ownership(&mut self, ownership: &Ownership) {
        let (code, owners): (u8, &[Guid]) = match ownership {
            Ownership::Unallocated => (0, &[]),
            Ownership::Dedicated(host) => (1, std::slice::from_ref(host)),
            Ownership::Shared(hosts) => (2, hosts),
        };
        self.code("rma.ownership", &[code], code, ownership.word());
        self.u8(
            "rma.owners.count",
            u8::try_from(owners.len()).expect("fits"),
        );
        for owner in owners {
            self.guid("rma.owner", *owner);
        }
    }

    fn owned(&mut self, stamp: OwnershipStamp) {
        self.u64("rma.owned.epoch", stamp.epoch.0);
        self.u64("rma.owned.term", stamp.term);
        self.guid("rma.owned.writer", stamp.writer);
    }

    fn register(&mut self, register: &OwnershipRegister) {
        self.guid("rma.register.row", register.row);
        self.ownership(&register.ownership);
        self.owned(register.owned);
        self.extent(register.extent.as_ref());
    }

    fn extent(&mut self, facts: Option<&ExtentFacts>) {
        self.u8("rma.extent.count", facts.is_some().into());
        let Some(facts) = facts else {
            return;
        };
        self.guid("rma.extent.device", facts.device);
        self.u64("rma.extent.offset", facts.range.offset);
        self.u64("rma.extent.length", facts.range.len);
        self.flag("rma.extent.present", facts.present);
        self.text("rma.extent.name", &facts.name);
    }

    fn digest(&mut self, name: &'static str, digest: u128) {
        let digest = digest.to_be_bytes();
        let show: Vec<_> = digest.iter().map(|b| format!("{b:02x}")).collect();
        self.add(name, &digest, show.join(":"));
    }

    fn summary(&mut self, summary: &TableSummary) {
        self.u64("rma.table.term", summary.stamp.term);
        self.u64("rma.table.counter", summary.stamp.counter);
        self.guid("rma.table.writer", summary.stamp.writer);
        self.digest("rma.table.digest", summary.digest);
        self.u32("rma.table.rows", summary.row_count as usize);
        self.u64("rma.table.floor.term", summary.floor.term);
        self.u64("rma.table.floor.counter", summary.floor.counter);
        self.guid("rma.table.floor.writer", summary.floor.writer);
    }

    fn parts(&mut self, parts: &Parts) {
        self.u8("rma.parts.level", parts.level);
        self.u32("rma.parts.count", parts.numbers.len());
        for number in &parts.numbers {
            self.add("rma.part", &number.to_be_bytes(), format!("0x{number:04x}"));
        }
    }

    fn settings(&mut self, settings: &Settings) {
        let granularity = settings.granularity;
        self.code(
            "rma.settings.granularity",
            &[granularity.code()],
            granularity.code(),
            granularity.name(),
        );
        self.u64("rma.settings.term", settings.stamp.term);
        self.u64("rma.settings.counter", settings.stamp.counter);
        self.guid("rma.settings.writer", settings.stamp.writer);
    }

    fn holder(&mut self, holder: &Holder) {
        self.u64("rma.holder.term", holder.term);
        self.guid("rma.holder.host", holder.host);
        let purpose = holder.purpose;
        self.code(
            "rma.holder.purpose",
            &[purpose.code()],
            purpose.code(),
            purpose.name(),
        );
        self.u32("rma.holder.process", holder.process as usize);
        self.text("rma.holder.name", &holder.name);
        self.text("rma.holder.user", &holder.user);
    }

    fn row(&mut self, row: &Row) {
        self.guid("rma.row.guid", row.guid);
        self.entity("rma.row.entity", row.entity);
        self.code(
            "rma.row.state",
            &[row.state.code()],
            row.state.code(),
            row.state.name(),
        );
        self.u8("rma.row.mode", row.mode);
        self.u8(
            "rma.macs.count",
            u8::try_from(row.macs.len()).expect("fits"),
        );
        for mac in &row.macs {
            self.add("rma.mac", &mac.0, mac);
        }
        self.u16("rma.row.ioc", row.ioc.0);
        self.u16("rma.row.iod", row.iod.0);
        let (offset, len) = row.extent.map_or((0, 0), |e| (e.offset, e.len));
        self.u64("rma.row.extent.offset", offset);
        self.u64("rma.row.extent.length", len);
        self.guid("rma.row.parent", row.parent);
        self.text("rma.row.name", &row.name);
        self.text("rma.row.vendor", &row.vendor);
        self.text("rma.row.model", &row.model);
        self.text("rma.row.serial", &row.serial);
        self.u64("rma.row.size", row.size_bytes);
        self.u32("rma.row.block_size", row.block_size as usize);
        self.hex64("rma.features", row.features);
        self.observed(row.observed);
        self.ownership(&row.ownership);
        self.owned(row.owned);
    }

    fn rows(&mut self, rows: &[Row]) {
        self.u32("rma.rows.count", rows.len());
        for row in rows {
            self.row(row);
        }
    }

    fn member(&mut self, member: &Member) {
        self.guid("rma.member.guid", member.guid);
        self.entity("rma.member.entity", member.entity);
        self.macs(&member.macs);
        self.text("rma.member.name", &member.name);
        self.observed(member.observed);
        self.ownership(&member.ownership);
        self.u64("rma.member.epoch", member.epoch.0);
        self.u64("rma.member.version", member.version);
        self.flag("rma.member.guest", member.guest);
    }

    fn placement(&mut self, placement: &Placement) {
        self.cluster("rma.placement.home", placement.home);
        self.u64("rma.placement.assignment", placement.assignment);
        self.u32("rma.guests.count", placement.guests.len());
        for guest in &placement.guests {
            self.cluster("rma.guest", *guest);
        }
    }

    fn device(&mut self, device: &DeviceRecord) {
        self.guid("rma.device.guid", device.guid);
        self.u16("rma.device.iod", device.iod.0);
        self.text("rma.device.name", &device.name);
        self.text("rma.device.vendor", &device.vendor);
        self.text("rma.device.model", &device.model);
        self.text("rma.device.serial", &device.serial);
        self.u64("rma.device.size", device.size_bytes);
        self.u32("rma.device.block_size", device.block_size as usize);
        self.hex64("rma.features", device.features);
        self.observed(device.observed);
    }

    fn missing(&mut self, missing: &Missing) {
        self.u32("rma.ranges.count", missing.ranges.len());
        for range in &missing.ranges {
            self.u32("rma.range.offset", range.offset as usize);
            self.u32("rma.range.length", range.len as usize);
        }
    }

    fn range(&mut self, range: IoRange) {
        self.guid("rma.io.extent", range.extent);
        self.u64("rma.io.offset", range.offset);
        self.u64("rma.io.length", range.len);
    }

    fn data(&mut self, data: &[u8]) {
        let show: Vec<_> = data.iter().map(|b| format!("{b:02x}")).collect();
        self.add("rma.data", data, show.join(":"));
    }

    fn registers(&mut self, reply: &RegistersReply) {
        self.flag("rma.more", reply.more);
        self.u32("rma.registers.count", reply.registers.len());
        for register in &reply.registers {
            self.register(register);
        }
    }
}

/// CRC-32 as IEEE 802.3 has it, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |s, _| {
            (s >> 1) ^ (0xedb8_8320 * (s & 1))
        })
    })
}

/// The header's fields; its checksum covers `body`.
pub fn header_fields(header: &Header, body: &[u8]) -> Vec<Field> {
    let mut f = Fields::default();
    f.u8("rma.version", 1);
    let kind = header.kind;
    f.code(
        "rma.kind",
        &[kind.code()],
        format!("0x{:02x}", kind.code()),
        kind.name(),
    );
    let flags = header.flags.bits();
    f.add("rma.flags", &flags.to_be_bytes(), format!("0x{flags:04x}"));
    f.u16(
        "rma.payload_length",
        u16::try_from(body.len()).expect("fits"),
    );
    f.u16("rma.ioc", header.ioc.0);
    f.u16("rma.iod", header.iod.0);
    let status = header.status;
    f.code(
        "rma.status",
        &status.code().to_be_bytes(),
        status.code(),
        status.name(),
    );
    f.u16("rma.outstanding", header.outstanding);
    f.u16("rma.credits", header.credits);
    let sum_at = f.0.len();
    f.add("rma.checksum", &[0; 4], "");
    f.u32("rma.segment.offset", header.segment_offset as usize);
    f.u32("rma.message_length", header.message_len as usize);
    f.add("rma.reserved", &[0; 4], "0x00000000");
    f.hex64("rma.connection", header.connection.0);
    f.u64("rma.command", header.command.0);
    f.u64("rma.epoch", header.epoch.0);
    f.cluster("rma.cluster", header.cluster);
    f.add("rma.tag", &[0; 16], ["00"; 16].join(":"));
    let mut summed: Vec<u8> = f.0.iter().flat_map(|f| f.bytes.clone()).collect();
    summed.extend_from_slice(body);
    let sum = crc32(&summed);
    f.0[sum_at].bytes = sum.to_be_bytes().to_vec();
    f.0[sum_at].show = format!("0x{sum:08x}");
    f.0
}

/// A body's fields.
pub fn body_fields(body: &Body<'_>) -> Vec<Field> {
    let mut f = Fields::default();
    match body {
        Body::Empty => {}
        Body::ConnectRequest(m) => {
            f.guid("rma.connect.initiator", m.initiator);
            f.u64("rma.connect.incarnation", m.incarnation.0);
            f.u64("rma.connect.session", m.session);
            f.u32("rma.connect.attempt", m.attempt as usize);
            f.code(
                "rma.connect.role",
                &[m.role.code()],
                m.role.code(),
                m.role.name(),
            );
            f.guid("rma.connect.responder", m.responder);
            f.hex64("rma.connect.features", m.features);
            f.u16("rma.connect.mtu", m.mtu);
            f.u16("rma.connect.credits", m.credits);
        }
        Body::ConnectReply(m) => {
            f.guid("rma.connect.responder", m.responder);
            f.u64("rma.connect.incarnation", m.incarnation.0);
            f.hex64("rma.connect.features", m.features);
            f.u16("rma.connect.mtu", m.mtu);
            f.u16("rma.connect.credits", m.credits);
            f.flag("rma.connect.resumed", m.resumed);
        }
        Body::Missing(m) => f.missing(m),
        Body::ProgressReport(m) => {
            let progress = m.progress;
            f.code(
                "rma.progress",
                &[progress.code()],
                progress.code(),
                progress.name(),
            );
            f.missing(&m.missing);
        }
        Body::PathProbe(m) => {
            f.u32("rma.path.number", m.number as usize);
            f.u16("rma.path.mtu", m.mtu);
            let padding = vec![0; m.padding.into()];
            let show: Vec<_> = padding.iter().map(|b| format!("{b:02x}")).collect();
            f.add("rma.path.padding", &padding, show.join(":"));
        }
        Body::Notification(m) => {
            f.u64("rma.notify.number", m.number);
            f.code(
                "rma.notify.event",
                &[m.event.code()],
                m.event.code(),
                m.event.name(),
            );
            f.u16("rma.notify.ioc", m.ioc.0);
            f.observed(m.stamp);
        }
        Body::Discover(m) => {
            f.guid("rma.discover.asker", m.asker);
            f.code(
                "rma.discover.role",
                &[m.role.code()],
                m.role.code(),
                m.role.name(),
            );
        }
        Body::Here(m) => {
            f.guid("rma.here.fabric", m.fabric);
            f.u64("rma.here.incarnation", m.incarnation.0);
        }
        Body::Register(m) => {
            f.guid("rma.member.guid", m.guid);
            f.entity("rma.member.entity", m.entity);
            f.macs(&m.macs);
            f.text("rma.member.name", &m.name);
            f.observed(m.observed);
            f.cluster("rma.register.cluster", m.cluster);
            f.placement(&m.placement);
        }
        Body::Registered(m) => {
            f.cluster("rma.register.cluster", m.cluster);
            f.u64("rma.register.version", m.version);
            f.u64("rma.register.assignment", m.assignment);
        }
        Body::MembershipRequest(m) => {
            f.u64("rma.membership.known_version", m.known_version);
            f.guid("rma.after", m.after);
        }
        Body::MembershipReply(m) => {
            f.u64("rma.membership.version", m.version);
            f.flag("rma.membership.unchanged", m.unchanged);
            f.flag("rma.more", m.more);
            f.u32("rma.members.count", m.members.len());
            m.members.iter().for_each(|member| f.member(member));
        }
        Body::UnitOwnership(m) => {
            f.guid("rma.unit_ownership.unit", m.unit);
            f.ownership(&m.ownership);
            f.u64("rma.unit_ownership.epoch", m.epoch.0);
        }
        Body::FindHost(m) => {
            f.cluster("rma.find.cluster", m.cluster);
            f.text("rma.find.host", &m.host);
        }
        Body::FoundHost(m) => f.guid("rma.found.host", m.host),
        Body::InUseRequest(m) => {
            f.u32("rma.rows.count", m.rows.len());
            m.rows.iter().for_each(|row| f.guid("rma.use.row", *row));
        }
        Body::InUseReply(m) => {
            f.guid("rma.use.row", m.row);
            f.text("rma.use.users", &m.users.0);
        }
        Body::TableSummary(m) => f.summary(m),
        Body::TableRowsRequest(m) => {
            f.guid("rma.after", m.after);
            f.parts(&m.parts);
        }
        Body::TableDigestsRequest(m) => {
            f.parts(&m.parts);
            f.u8("rma.digests.depth", m.depth);
        }
        Body::TableDigestsReply(m) => {
            f.summary(&m.summary);
            f.settings(&m.settings);
            f.u32("rma.digests.count", m.digests.len());
            for digest in &m.digests {
                f.hex64("rma.digest", *digest);
            }
        }
        Body::TableRowsReply(m) => {
            f.summary(&m.summary);
            f.settings(&m.settings);
            f.flag("rma.more", m.more);
            f.rows(&m.rows);
        }
        Body::Offer(m) => {
            f.summary(&m.summary);
            f.settings(&m.settings);
            f.rows(&m.rows);
        }
        Body::Deposit(m) => {
            f.summary(&m.summary);
            f.settings(&m.settings);
            f.digest("rma.deposit.base", m.base);
            f.u32("rma.deposit.piece", m.piece as usize);
            f.flag("rma.more", m.more);
            f.parts(&m.parts);
            f.rows(&m.rows);
        }
        Body::LeaseRequest(m) => {
            f.code(
                "rma.lease.verb",
                &[m.verb.code()],
                m.verb.code(),
                m.verb.name(),
            );
            f.flag("rma.lease.force", m.force);
            f.holder(&m.holder);
        }
        Body::LeaseReply(m) => {
            f.flag("rma.lease.granted", m.granted);
            f.u64("rma.lease.promised", m.promised);
            f.settings(&m.settings);
            f.u64("rma.lease.held", m.held_ms);
            f.u64("rma.lease.left", m.left_ms);
            f.u8("rma.holders.count", u8::from(m.holder.is_some()));
            m.holder.iter().for_each(|holder| f.holder(holder));
        }
        Body::Settings(m) => f.settings(m),
        Body::ControllersReply(m) => {
            f.guid("rma.unit.guid", m.unit);
            f.text("rma.unit.name", &m.name);
            f.text("rma.unit.vendor", &m.vendor);
            f.text("rma.unit.model", &m.model);
            f.text("rma.unit.serial", &m.serial);
            f.macs(&m.macs);
            f.observed(m.observed);
            f.listed(m.listed);
            f.u32("rma.controllers.count", m.controllers.len());
            for c in &m.controllers {
                f.guid("rma.controller.guid", c.guid);
                f.u16("rma.controller.ioc", c.ioc.0);
                f.text("rma.controller.name", &c.name);
                f.text("rma.controller.model", &c.model);
                f.observed(c.observed);
            }
        }
        Body::Restore(m) => {
            f.u64("rma.restore.term", m.term);
            f.guid("rma.after", m.after);
            f.flag("rma.more", m.more);
            f.u32("rma.registers.count", m.registers.len());
            m.registers.iter().for_each(|register| f.register(register));
        }
        Body::Move(m) => {
            f.u64("rma.move.term", m.term);
            f.guid("rma.move.writer", m.writer);
            f.guid("rma.move.row", m.row);
            f.u64("rma.move.expected", m.expected.0);
            f.cluster("rma.move.to", m.to);
            f.guid("rma.move.owner", m.owner);
            f.flag("rma.move.recursive", m.recursive);
        }
        Body::RegistersRequest(m) => f.guid("rma.after", m.after),
        Body::RegistersReply(m) => f.registers(m),
        Body::CompareAndSet(m) => {
            f.u64("rma.change.term", m.term);
            f.guid("rma.change.writer", m.writer);
            f.u32("rma.changes.count", m.changes.len());
            for change in &m.changes {
                f.guid("rma.change.row", change.row);
                f.u64("rma.change.expected", change.expected.0);
                f.ownership(&change.ownership);
                f.extent(change.extent.as_ref());
            }
        }
        Body::Conflict(m) => f.register(&m.register),
        Body::DevicesReply(m) => {
            f.guid("rma.devices.controller", m.controller);
            f.listed(m.listed);
            f.u32("rma.devices.count", m.devices.len());
            m.devices.iter().for_each(|device| f.device(device));
        }
        Body::IdentifyReply(m) => {
            f.device(&m.device);
            f.register(&m.register);
        }
        Body::IoRange(m) => f.range(*m),
        Body::Write(range, data) => {
            f.range(*range);
            f.data(data);
        }
        Body::Data(data) => f.data(data),
    }
    f.0
}
