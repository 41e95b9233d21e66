//! Reading and writing of message bodies: big-endian, bounds-checked, nothing left over.

use super::id::{ClusterName, Epoch, Extent, Guid, Incarnation, IocNumber, IodNumber, Mac};
use super::kind::{EntityType, Event, Progress, Role};

/// Room that most bodies and rows fit in.
const USUAL_BYTES: usize = 128;

/// Why a message body cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The body ends inside a field.
    #[error("truncated")]
    Truncated,
    /// Bytes follow the last field.
    #[error("trailing bytes")]
    Trailing,
    /// A code, flag or reserved field has a value that is not assigned.
    #[error("bad value in {0}")]
    BadValue(&'static str),
    /// A count or length is over its limit.
    #[error("{0} over its limit")]
    TooLarge(&'static str),
    /// Text is not UTF-8.
    #[error("text is not UTF-8")]
    NotText,
}

/// A cursor over a message body.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// What has not been read.
    pub const fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    /// Takes `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self
            .bytes
            .split_at_checked(len)
            .ok_or(DecodeError::Truncated)?;
        self.bytes = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// Ends the reading; bytes left over are an error.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.bytes.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Trailing)
        }
    }

    /// Takes a value.
    pub fn get<T: Wire>(&mut self) -> Result<T, DecodeError> {
        T::get(self)
    }

    /// Takes a text with a one-byte length; longer than `max` bytes is an error.
    pub fn text(&mut self, what: &'static str, max: usize) -> Result<String, DecodeError> {
        let len = self.get::<u8>()? as usize;
        if len > max {
            return Err(DecodeError::TooLarge(what));
        }
        let text = std::str::from_utf8(self.take(len)?).map_err(|_| DecodeError::NotText)?;
        Ok(text.to_owned())
    }

    /// Takes a GUID that names an entity: [`Guid::NIL`] is an error.
    pub fn identity(&mut self) -> Result<Guid, DecodeError> {
        let guid: Guid = self.get()?;
        if guid.is_nil() {
            return Err(DecodeError::BadValue("GUID"));
        }
        Ok(guid)
    }

    /// Takes a list with a four-byte count; more than `max` entries is an error. Nothing is
    /// reserved on the word of the count.
    pub fn list<T: Wire>(&mut self, what: &'static str, max: usize) -> Result<Vec<T>, DecodeError> {
        let count = self.get::<u32>()? as usize;
        if count > max {
            return Err(DecodeError::TooLarge(what));
        }
        let mut out = Vec::new();
        for _ in 0..count {
            out.push(T::get(self)?);
        }
        Ok(out)
    }
}

/// A growing message body.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty body.
    pub const fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    /// The body.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends a value.
    pub fn put<T: Wire>(&mut self, value: &T) {
        value.put(self);
    }

    /// Appends a text with a one-byte length; text over 255 bytes is cut at a character boundary.
    pub fn text(&mut self, text: &str) {
        let mut len = text.len().min(255);
        while !text.is_char_boundary(len) {
            len -= 1;
        }
        self.put(&(len as u8));
        self.raw(&text.as_bytes()[..len]);
    }

    /// Appends a text with a one-byte length, cut to `max` bytes (at most 255) at a character
    /// boundary: with the reader's limit, what is written can always be read.
    pub fn text_within(&mut self, text: &str, max: usize) {
        let mut len = text.len().min(max);
        while !text.is_char_boundary(len) {
            len -= 1;
        }
        self.text(&text[..len]);
    }

    /// Appends a list with a four-byte count.
    pub fn list<T: Wire>(&mut self, values: &[T]) {
        self.put(&(values.len() as u32));
        for value in values {
            self.put(value);
        }
    }
}

/// A value with one layout on the wire.
pub trait Wire: Sized {
    /// Appends the value.
    fn put(&self, w: &mut Writer);
    /// Takes the value.
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError>;

    /// The value as a whole message body.
    fn to_body(&self) -> Vec<u8> {
        let mut w = Writer {
            bytes: Vec::with_capacity(USUAL_BYTES),
        };
        self.put(&mut w);
        w.into_bytes()
    }

    /// The value from a whole message body.
    fn from_body(body: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(body);
        let value = Self::get(&mut r)?;
        r.finish()?;
        Ok(value)
    }
}

macro_rules! wire_int {
    ($($t:ty),+) => { $(
        impl Wire for $t {
            fn put(&self, w: &mut Writer) {
                w.raw(&self.to_be_bytes());
            }
            fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(Self::from_be_bytes(r.array()?))
            }
        }
    )+ };
}
wire_int!(u8, u16, u32, u64, u128);

macro_rules! wire_newtype {
    ($($t:ident),+) => { $(
        impl Wire for $t {
            fn put(&self, w: &mut Writer) {
                w.put(&self.0);
            }
            fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(Self(r.get()?))
            }
        }
    )+ };
}
wire_newtype!(Guid, IocNumber, IodNumber, Epoch, Incarnation);

macro_rules! wire_code {
    ($($t:ident => $what:literal),+ $(,)?) => { $(
        impl Wire for $t {
            fn put(&self, w: &mut Writer) {
                w.put(&self.code());
            }
            fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Self::from_code(r.get()?).ok_or(DecodeError::BadValue($what))
            }
        }
    )+ };
}
wire_code!(EntityType => "entity type", Role => "role", Progress => "progress", Event => "event");
pub(crate) use wire_code;

impl Wire for bool {
    fn put(&self, w: &mut Writer) {
        w.put(&u8::from(*self));
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match r.get::<u8>()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::BadValue("boolean")),
        }
    }
}

impl Wire for Mac {
    fn put(&self, w: &mut Writer) {
        w.raw(&self.0);
    }
    /// A group address or the zero address is no NIC's: frames would go to everyone or nobody.
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mac = Self(r.array()?);
        if mac.is_multicast() || mac == Self::default() {
            return Err(DecodeError::BadValue("MAC address"));
        }
        Ok(mac)
    }
}

impl Wire for ClusterName {
    fn put(&self, w: &mut Writer) {
        w.raw(&self.to_bytes());
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::from_bytes(r.array()?).ok_or(DecodeError::BadValue("cluster name"))
    }
}

impl Wire for Option<Extent> {
    fn put(&self, w: &mut Writer) {
        let (offset, len) = self.map_or((0, 0), |e| (e.offset, e.len));
        w.put(&offset);
        w.put(&len);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (offset, len): (u64, u64) = (r.get()?, r.get()?);
        match len {
            0 if offset == 0 => Ok(None),
            0 => Err(DecodeError::BadValue("extent")),
            _ if offset.checked_add(len).is_none() => Err(DecodeError::BadValue("extent")),
            _ => Ok(Some(Extent { offset, len })),
        }
    }
}

/// Checks that `items` ascend strictly by `key`, so that none is there twice.
pub(crate) fn ascending<T, K: Ord>(
    items: &[T],
    key: impl Fn(&T) -> K,
    what: &'static str,
) -> Result<(), DecodeError> {
    if items.windows(2).all(|w| key(&w[0]) < key(&w[1])) {
        Ok(())
    } else {
        Err(DecodeError::BadValue(what))
    }
}

/// Checks that no two `items` have the same `key`, in whatever order they are.
pub(crate) fn distinct<T, K: Ord>(
    items: &[T],
    key: impl Fn(&T) -> K,
    what: &'static str,
) -> Result<(), DecodeError> {
    let mut keys: Vec<K> = items.iter().map(key).collect();
    keys.sort_unstable();
    if keys.windows(2).all(|w| w[0] != w[1]) {
        Ok(())
    } else {
        Err(DecodeError::BadValue(what))
    }
}
