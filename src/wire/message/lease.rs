//! Bodies of the allocation lease: who asks for it, and what a voter says.

use super::super::codec::{DecodeError, Reader, Wire, Writer, wire_code};
use super::super::id::Guid;
use super::super::row::{MAX_NAME_BYTES, Settings, wire_struct};

code_table! {
    /// What a voter is asked to do.
    pub enum LeaseVerb: u8 {
        /// Nothing: to say what it knows.
        Query = 1 => "query",
        /// To grant a new term.
        Ask = 2 => "ask",
        /// To go on granting a term.
        Renew = 3 => "renew",
        /// To forget that it granted a term.
        Release = 4 => "release",
    }
}

code_table! {
    /// What an allocation session is for.
    pub enum Purpose: u8 {
        /// The changes that are on their way; it ends soon after them.
        Work = 1 => "work",
        /// An administrator keeps it until it is released.
        Administrator = 2 => "administrator",
    }
}
wire_code!(LeaseVerb => "lease verb", Purpose => "purpose");

/// One allocation session: who holds the lease, or wants to, under which term.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holder {
    /// The session's term; 0 only in a query.
    pub term: u64,
    /// The host.
    pub host: Guid,
    /// What the session is for.
    pub purpose: Purpose,
    /// The process that asked for it, 0 where not known.
    pub process: u32,
    /// The host's name.
    pub name: String,
    /// The user whose process it is; empty where not known.
    pub user: String,
}

impl Wire for Holder {
    fn put(&self, w: &mut Writer) {
        w.put(&self.term);
        w.put(&self.host);
        w.put(&self.purpose);
        w.put(&self.process);
        w.text_within(&self.name, MAX_NAME_BYTES);
        w.text_within(&self.user, MAX_NAME_BYTES);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            term: r.get()?,
            host: r.identity()?,
            purpose: r.get()?,
            process: r.get()?,
            name: r.text("name", MAX_NAME_BYTES)?,
            user: r.text("user", MAX_NAME_BYTES)?,
        })
    }
}

/// Asks a voter about the allocation lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRequest {
    /// What to do.
    pub verb: LeaseVerb,
    /// An ask only: also where another session holds the lease.
    pub force: bool,
    /// The session that asks; its host is the sender.
    pub holder: Holder,
}
wire_struct!(LeaseRequest { verb, force, holder } checked);

impl LeaseRequest {
    fn check(&self) -> Result<(), DecodeError> {
        if (self.holder.term == 0) != (self.verb == LeaseVerb::Query) {
            return Err(DecodeError::BadValue("term"));
        }
        if self.force && self.verb != LeaseVerb::Ask {
            return Err(DecodeError::BadValue("force"));
        }
        Ok(())
    }
}

/// What a voter says about the allocation lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LeaseReply {
    /// Whether the voter grants what was asked for. What it has granted is durable.
    pub granted: bool,
    /// The highest term that the voter has promised: it grants none below.
    pub promised: u64,
    /// Cluster-wide settings as the voter keeps them.
    pub settings: Settings,
    /// How long ago the voter granted the session below, or began to remember it, in milliseconds.
    pub held_ms: u64,
    /// For how long it refuses every other session, in milliseconds.
    pub left_ms: u64,
    /// The session that it has granted last, until that is over.
    pub holder: Option<Holder>,
}

impl Wire for LeaseReply {
    fn put(&self, w: &mut Writer) {
        w.put(&self.granted);
        w.put(&self.promised);
        w.put(&self.settings);
        w.put(&self.held_ms);
        w.put(&self.left_ms);
        put_holder(w, self.holder.as_ref());
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let reply = Self {
            granted: r.get()?,
            promised: r.get()?,
            settings: r.get()?,
            held_ms: r.get()?,
            left_ms: r.get()?,
            holder: get_holder(r, "holders")?,
        };
        if reply.granted && reply.holder.is_none() {
            return Err(DecodeError::BadValue("holders"));
        }
        if reply
            .holder
            .as_ref()
            .is_some_and(|h| h.term > reply.promised)
        {
            return Err(DecodeError::BadValue("term"));
        }
        Ok(reply)
    }
}

/// Writes a session or none: a count of one byte, and so many of them.
pub(crate) fn put_holder(w: &mut Writer, holder: Option<&Holder>) {
    w.put(&u8::from(holder.is_some()));
    if let Some(holder) = holder {
        w.put(holder);
    }
}

/// Takes what [`put_holder`] writes; a session that was granted has a term.
pub(crate) fn get_holder(
    r: &mut Reader<'_>,
    what: &'static str,
) -> Result<Option<Holder>, DecodeError> {
    match r.get::<u8>()? {
        0 => Ok(None),
        1 => {
            let holder: Holder = r.get()?;
            if holder.term == 0 {
                return Err(DecodeError::BadValue("term"));
            }
            Ok(Some(holder))
        }
        _ => Err(DecodeError::TooLarge(what)),
    }
}
