//! The signed heartbeat.
//!
//! 56 bytes, all numbers big-endian; docs/heartbeat.md has the protocol and test vectors for other languages:
//!
//! ```text
//!    0        4       5      8          16           24                                  56
//!    | "KABT" | 0x01  | zero |  client  |  sequence  |  HMAC-SHA-256(key, nonce ‖ 0..24)  |
//! ```

use core::error;
use core::fmt;

use hmac::{Hmac, KeyInit, Mac};
use ka_core::Errno;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::sys;

/// A frame as it is sent.
pub type Frame = [u8; Beat::SIZE];

/// How a frame begins: magic, version, and zeros that a later version may use.
const BEGINNING: [u8; 8] = *b"KABT\x01\0\0\0";

/// The part of a frame that is signed, in its words.
type Signed = [[u8; 8]; 3];

/// A MAC.
type Tag = [u8; 32];

/// A heartbeat: who speaks, and how often so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The client's number: it says whose key to take.
    pub client: u64,
    /// 1 for the first beat of a connection, and higher with each.
    pub sequence: u64,
}

/// A key that a client and its server share, of 16 bytes or more; 32 random ones are best (RFC 2104, section 3).
///
/// It is only borrowed: to wipe the key itself is for its owner.
#[derive(Clone, Copy)]
pub struct Key<'a>(&'a [u8]);

impl<'a> Key<'a> {
    /// The fewest bytes of a key.
    pub const MIN_SIZE: usize = 16;

    /// These bytes as a key.
    ///
    /// # Errors
    /// [`BeatError::ShortKey`] for fewer than 16.
    pub const fn new(bytes: &'a [u8]) -> Result<Self, BeatError> {
        if bytes.len() < Self::MIN_SIZE { Err(BeatError::ShortKey(bytes.len())) } else { Ok(Self(bytes)) }
    }
}

/// It does not show the key.
impl fmt::Debug for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} bytes)", self.0.len())
    }
}

/// What makes a connection's beats good for that connection alone: the server sends it first, 16 bytes as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce([u8; Nonce::SIZE]);

impl Nonce {
    /// Its bytes on the wire.
    pub const SIZE: usize = 16;

    /// A new one, from getrandom(2): a nonce is for one connection.
    ///
    /// # Errors
    /// [`BeatError::NoRandomness`], as where a sandbox forbids it.
    pub fn random() -> Result<Self, BeatError> {
        let mut bytes = [0; Self::SIZE];
        sys::random(&mut bytes).map_err(BeatError::NoRandomness)?;
        Ok(Self(bytes))
    }

    /// Its bytes, to be sent.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::SIZE] {
        &self.0
    }
}

/// The one that a server sent.
impl From<[u8; Nonce::SIZE]> for Nonce {
    fn from(bytes: [u8; Self::SIZE]) -> Self {
        Self(bytes)
    }
}

/// Why there is no nonce, or why a beat was not signed, or not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BeatError {
    /// A key of fewer than 16 bytes; this many (EINVAL).
    ShortKey(usize),
    /// The kernel gave no random bytes for a nonce, and said why.
    NoRandomness(Errno),
    /// A sequence of 0 cannot be signed: the first is 1 (EINVAL).
    NoSequence,
    /// These 56 bytes are no frame of this version (EBADMSG).
    NotAFrame,
    /// It was not made with this key for this connection, or garbled on the way (EBADMSG).
    Forged,
    /// It is genuine, but no newer than what was seen (ESTALE): it was sent again.
    Stale {
        /// Its sequence.
        sequence: u64,
        /// The last one seen.
        last_sequence: u64,
    },
}

impl BeatError {
    /// The `errno` of this error in C.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::ShortKey(_) | Self::NoSequence => Errno(libc::EINVAL),
            Self::NoRandomness(errno) => *errno,
            Self::NotAFrame | Self::Forged => Errno(libc::EBADMSG),
            Self::Stale { .. } => Errno(libc::ESTALE),
        }
    }
}

impl From<BeatError> for Errno {
    fn from(error: BeatError) -> Self {
        error.errno()
    }
}

impl fmt::Display for BeatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShortKey(size) => {
                write!(f, "the key has {size} bytes: it must have {} or more", Key::MIN_SIZE)
            }
            Self::NoRandomness(errno) => write!(f, "no random bytes: the kernel answered errno {}", errno.0),
            Self::NoSequence => f.write_str("the sequence is 0: the first is 1"),
            Self::NotAFrame => f.write_str("not a heartbeat of version 1"),
            Self::Forged => f.write_str("not signed with this client's key for this connection"),
            Self::Stale { sequence, last_sequence } => {
                write!(f, "sequence {sequence} was seen before: {last_sequence} was the last")
            }
        }
    }
}

impl error::Error for BeatError {}

impl Beat {
    /// A frame's bytes on the wire.
    pub const SIZE: usize = 56;

    /// The frame of this beat for the connection that has this nonce.
    ///
    /// # Errors
    /// [`BeatError::NoSequence`] for sequence 0.
    pub fn sign(&self, key: Key<'_>, nonce: &Nonce) -> Result<Frame, BeatError> {
        if self.sequence == 0 {
            return Err(BeatError::NoSequence);
        }
        let signed = [BEGINNING, self.client.to_be_bytes(), self.sequence.to_be_bytes()];
        let tag = tag(key, nonce, &signed)?;
        let mut frame = [0; Self::SIZE];
        for (to, from) in frame.iter_mut().zip(signed.as_flattened().iter().chain(&tag)) {
            *to = *from;
        }
        Ok(frame)
    }

    /// The client that a frame says it is of. Nothing proves it yet: it is for finding the key to
    /// [`verify`](Self::verify) with.
    ///
    /// # Errors
    /// [`BeatError::NotAFrame`] where magic, version or the zeros are not those of a frame.
    pub fn client(frame: &Frame) -> Result<u64, BeatError> {
        let (signed, _) = read(frame)?;
        Ok(beat(signed).client)
    }

    /// The beat of a frame, if it was made with this key for the connection that has this nonce, and is newer than the
    /// last one seen there: 0 before the first.
    ///
    /// The MAC is compared in a time that does not depend on it, and the sequence is looked at only then.
    ///
    /// # Errors
    /// [`BeatError::NotAFrame`], [`BeatError::Forged`]; [`BeatError::Stale`] for a genuine one that is not newer.
    pub fn verify(key: Key<'_>, nonce: &Nonce, last_sequence: u64, frame: &Frame) -> Result<Self, BeatError> {
        let (signed, found) = read(frame)?;
        if !bool::from(tag(key, nonce, signed)?.ct_eq(found)) {
            return Err(BeatError::Forged);
        }
        let beat = beat(signed);
        if beat.sequence <= last_sequence {
            return Err(BeatError::Stale { sequence: beat.sequence, last_sequence });
        }
        Ok(beat)
    }
}

/// The signed part of what looks like a frame, and its MAC, not compared yet.
fn read(frame: &Frame) -> Result<(&Signed, &[u8]), BeatError> {
    let (words, _) = frame.as_chunks();
    match words.split_first_chunk::<3>() {
        Some((signed, tag)) if signed.first() == Some(&BEGINNING) => Ok((signed, tag.as_flattened())),
        _ => Err(BeatError::NotAFrame),
    }
}

const fn beat([_, client, sequence]: &Signed) -> Beat {
    Beat { client: u64::from_be_bytes(*client), sequence: u64::from_be_bytes(*sequence) }
}

/// More stack than the HMAC uses, which in a release build is about 1 KiB, and little enough for a signal handler's.
const STACK: usize = 2048;

/// The MAC of a frame's signed part for a connection.
///
/// The crates wipe their hash states, but not the padded key that `hmac` has on the stack, nor what registers were
/// spilled there. So the work is done in a frame of its own, and the stack below this one is wiped after it.
fn tag(key: Key<'_>, nonce: &Nonce, signed: &Signed) -> Result<Tag, BeatError> {
    let tag = hmac(key, nonce, signed);
    zeroize::zeroize_stack::<STACK>();
    tag
}

#[inline(never)]
fn hmac(Key(key): Key<'_>, Nonce(nonce): &Nonce, signed: &Signed) -> Result<Tag, BeatError> {
    // HMAC takes a key of any length; the crate's word for one that it did not take is this.
    let mut hmac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| BeatError::ShortKey(key.len()))?;
    hmac.update(nonce);
    hmac.update(signed.as_flattened());
    Ok(hmac.finalize().into_bytes().into())
}
