//! `rma apply`: a desired cluster, unit by unit. It is checked as a whole before anything changes; each
//! unit then makes its changes in one transaction; what one unit does is independent of the others.

use std::collections::{BTreeMap, VecDeque};

use super::agent::Agent;
use super::apply_plan::{self, ApplyPlan};
use super::carve;
use super::desired::Desired;
use super::plan::error;
use super::report;
use super::request::{
    AdminError, AdminReply, ApplyChangeInfo, ApplyInfo, ApplyState, ApplyUnitInfo, Caller,
    ErrorKind, LevelChangeInfo,
};
use super::wish::Wish;
use crate::crt::Table;
use crate::wire::message::Change;
use crate::wire::{EntityType, Granularity, Guid, Ownership, Row, Time};

/// The most applies on their way.
const MAX_APPLIES: usize = 4;
/// The most units of an apply that are at their changes at a time; others wait.
const MAX_UNITS_AT_ONCE: usize = 8;

/// Tokens of requests that an apply makes of its own agent begin here; a shell's are below.
const OWN_TOKENS: u64 = 1 << 63;

/// An apply on its way.
#[derive(Debug)]
struct Apply {
    token: u64,
    caller: Caller,
    info: ApplyInfo,
    /// Units whose turn has not come.
    waiting: VecDeque<(Guid, Vec<Change>)>,
    /// Requests of our own that are not answered: of which unit, by its place in `info`, or of
    /// the granularity.
    asked: BTreeMap<u64, Option<usize>>,
}

/// The applies on their way.
#[derive(Debug, Default)]
pub(super) struct Applies {
    active: BTreeMap<u64, Apply>,
    /// Answers to requests of our own, not yet taken in.
    heard: VecDeque<(u64, AdminReply)>,
    next: u64,
}

impl Applies {
    /// Takes the answer to a request of our own; gives back that to an administrator's.
    pub(super) fn hear(&mut self, token: u64, reply: AdminReply) -> Option<AdminReply> {
        if token < OWN_TOKENS {
            return Some(reply);
        }
        self.heard.push_back((token, reply));
        None
    }

    /// The next answer to take in.
    pub(super) fn next_heard(&mut self) -> Option<(u64, AdminReply)> {
        self.heard.pop_front()
    }

    /// Whether answers wait to be taken in.
    pub(super) fn has_heard(&self) -> bool {
        !self.heard.is_empty()
    }

    fn next_token(&mut self) -> u64 {
        self.next += 1;
        OWN_TOKENS | self.next
    }
}

impl Agent {
    /// Begins to make the cluster as desired, or (`dry_run`) only says what that would change.
    pub(super) fn apply(
        &mut self,
        now: Time,
        token: u64,
        caller: &Caller,
        desired: &Desired,
        dry_run: bool,
    ) -> Result<(), AdminError> {
        if !self.boot.is_steady() {
            return Err(self.not_ready());
        }
        if self.applies.active.len() >= MAX_APPLIES {
            return Err(error(
                ErrorKind::Busy,
                format!("{MAX_APPLIES} applies are on their way; try again"),
            ));
        }
        let mut rng = self.rng.fork();
        let plan = {
            let is_member = |guid| self.is_member(guid);
            let mut draw = || carve::draw_guid(&mut rng, &self.table);
            apply_plan::plan(&self.table, desired, &is_member, &mut draw)?
        };
        for (unit, _) in &plan.units {
            self.check_reachable(now, *unit)?;
        }
        let info = self.apply_info(&plan, dry_run);
        if dry_run || !info.changed {
            self.reply(token, AdminReply::Applied(Box::new(info)));
            return Ok(());
        }
        let id = self.applies.next_token();
        let apply = Apply {
            token,
            caller: caller.clone(),
            info,
            waiting: plan.units.into(),
            asked: BTreeMap::new(),
        };
        self.applies.active.insert(id, apply);
        match plan.granularity {
            Some(level) => self.apply_level(now, id, caller, level),
            None => self.apply_units(now, id),
        }
        Ok(())
    }

    fn apply_info(&self, plan: &ApplyPlan, dry_run: bool) -> ApplyInfo {
        let table = &self.table;
        let units = plan.units.iter().map(|(unit, changes)| ApplyUnitInfo {
            unit: report::name_info(table, *unit),
            state: ApplyState::Left,
            error: None,
            changes: changes.iter().map(|c| change_info(table, c)).collect(),
        });
        ApplyInfo {
            dry_run,
            changed: plan.granularity.is_some() || !plan.units.is_empty(),
            granularity: plan.granularity.map(|level| LevelChangeInfo {
                before: table.settings().granularity.name().to_owned(),
                after: level.name().to_owned(),
            }),
            units: units.collect(),
        }
    }

    /// The units wait until the granularity holds.
    fn apply_level(&mut self, now: Time, id: u64, caller: &Caller, level: Granularity) {
        let token = self.applies.next_token();
        if let Some(apply) = self.applies.active.get_mut(&id) {
            apply.asked.insert(token, None);
        }
        if let Err(e) = self.set_granularity(now, token, caller, level.name()) {
            self.reply(token, AdminReply::Error(e));
        }
    }

    /// Begins the changes of units, as many at a time as may be.
    fn apply_units(&mut self, now: Time, id: u64) {
        while let Some(apply) = self.applies.active.get_mut(&id) {
            if apply.asked.len() >= MAX_UNITS_AT_ONCE {
                return;
            }
            let Some((unit, changes)) = apply.waiting.pop_front() else {
                break;
            };
            let name = unit.to_string();
            let place = apply.info.units.iter().position(|u| u.unit.guid == name);
            let caller = apply.caller.clone();
            let token = self.applies.next_token();
            if let Some(apply) = self.applies.active.get_mut(&id) {
                apply.asked.insert(token, place);
            }
            if let Err(e) = self.wish(now, token, &caller, unit, Wish::Batch { unit, changes }) {
                self.reply(token, AdminReply::Error(e));
            }
        }
        let over = |a: &Apply| a.asked.is_empty() && a.waiting.is_empty();
        if self.applies.active.get(&id).is_some_and(over)
            && let Some(apply) = self.applies.active.remove(&id)
        {
            self.reply(apply.token, AdminReply::Applied(Box::new(apply.info)));
        }
    }

    /// A request of our own has its answer.
    pub(super) fn apply_heard(&mut self, now: Time, token: u64, reply: AdminReply) {
        let of = |a: &&mut Apply| a.asked.contains_key(&token);
        let mut all = self.applies.active.iter_mut();
        let Some((id, apply)) = all.find(|(_, apply)| of(apply)) else {
            return;
        };
        let id = *id;
        let place = apply.asked.remove(&token).flatten();
        let unit = place.and_then(|at| apply.info.units.get_mut(at));
        match (unit, reply) {
            (Some(unit), AdminReply::Error(e)) => unit.error = Some(e.message),
            (Some(unit), _) => unit.state = ApplyState::Done,
            // The granularity; without it nothing is changed.
            (None, AdminReply::Error(e)) => {
                let token = apply.token;
                self.applies.active.remove(&id);
                return self.reply(token, AdminReply::Error(e));
            }
            (None, _) => {}
        }
        self.apply_units(now, id);
    }
}

/// A change as it is shown.
fn change_info(table: &Table, change: &Change) -> ApplyChangeInfo {
    let row = table.get(change.row);
    let before = row.filter(|row| row.is_valid());
    let facts = change.extent.as_ref();
    let act = match (before, facts) {
        (None, Some(_)) => "carve",
        (Some(_), Some(facts)) if !facts.present => "uncarve",
        (Some(row), Some(facts)) if row.name != facts.name => "rename",
        _ => "own",
    };
    let name = match (facts, row) {
        (Some(facts), _) => facts.name.clone(),
        (None, Some(row)) => row.name.clone(),
        (None, None) => String::new(),
    };
    let device = facts.and_then(|facts| table.get(facts.device));
    let address = match (facts, device.and_then(Row::address)) {
        (Some(facts), Some(mut address)) => {
            address.extent = Some(facts.range);
            address.to_string()
        }
        _ => row
            .and_then(Row::address)
            .map_or_else(String::new, |address| address.to_string()),
    };
    let entity = if facts.is_some() {
        EntityType::Extent
    } else {
        row.map_or(EntityType::Device, |row| row.entity)
    };
    ApplyChangeInfo {
        act: act.to_owned(),
        guid: change.row.to_string(),
        name,
        entity: entity.name().to_owned(),
        address,
        epoch: change.expected.0.saturating_add(1),
        before: report::ownership_info(
            table,
            before.map_or(&Ownership::Unallocated, |row| &row.ownership),
        ),
        after: report::ownership_info(table, &change.ownership),
    }
}
