//! The signed heartbeat.
//!
//! A frame has 56 bytes, and all numbers are big-endian. docs/heartbeat.md has the protocol, and test vectors for other
//! languages.
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

/// The bytes of a frame, as sent.
pub type Frame = [u8; Beat::SIZE];

/// The first 8 bytes of a frame: magic, version, and zeros that are reserved for later versions.
const BEGINNING: [u8; 8] = *b"KABT\x01\0\0\0";

/// The signed part of a frame, as three words.
type Signed = [[u8; 8]; 3];

/// A MAC.
type Tag = [u8; 32];

/// A heartbeat: the number of the client, and a sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The client's number, by which the server finds the key.
    pub client: u64,
    /// The sequence number: 1 for the first beat of a connection, and higher for each beat after it.
    pub sequence: u64,
}

/// A key of 16 bytes or more that a client and its server share. 32 random bytes are best (RFC 2104, section 3).
///
/// The bytes are borrowed. Their owner must wipe them.
#[derive(Clone, Copy)]
pub struct Key<'a>(&'a [u8]);

impl<'a> Key<'a> {
    /// The smallest size of a key in bytes.
    pub const MIN_SIZE: usize = 16;

    /// Returns a key of these bytes.
    ///
    /// # Errors
    /// [`BeatError::ShortKey`] for fewer than 16 bytes.
    pub const fn new(bytes: &'a [u8]) -> Result<Self, BeatError> {
        if bytes.len() < Self::MIN_SIZE { Err(BeatError::ShortKey(bytes.len())) } else { Ok(Self(bytes)) }
    }
}

/// Shows only the size of the key.
impl fmt::Debug for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} bytes)", self.0.len())
    }
}

/// 16 random bytes that bind beats to one connection. The server sends them as the first bytes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce([u8; Nonce::SIZE]);

impl Nonce {
    /// The size of a nonce in bytes.
    pub const SIZE: usize = 16;

    /// Returns a new random nonce from getrandom(2), or from /dev/urandom before Linux 3.17. Use it for one connection
    /// only.
    ///
    /// # Errors
    /// [`BeatError::NoRandomness`], for example if a sandbox forbids getrandom(2).
    pub fn random() -> Result<Self, BeatError> {
        let mut bytes = [0; Self::SIZE];
        sys::random(&mut bytes).map_err(BeatError::NoRandomness)?;
        Ok(Self(bytes))
    }

    /// Returns the bytes to send.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::SIZE] {
        &self.0
    }
}

/// Converts the bytes that a client has received from the server.
impl From<[u8; Nonce::SIZE]> for Nonce {
    fn from(bytes: [u8; Self::SIZE]) -> Self {
        Self(bytes)
    }
}

/// The reason why a key or a frame was rejected, a beat could not be signed, or no nonce could be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BeatError {
    /// The key has fewer than 16 bytes (EINVAL). The value is its size.
    ShortKey(usize),
    /// The kernel returned no random bytes for a nonce. The value is its error.
    NoRandomness(Errno),
    /// The sequence number is 0, but the first one is 1 (EINVAL).
    NoSequence,
    /// The 56 bytes are not a frame of this version (EBADMSG).
    NotAFrame,
    /// The frame was not signed with this key for this connection, or was corrupted in transit (EBADMSG).
    Forged,
    /// The frame is genuine, but its sequence number is not higher than the last one: it is a replay (ESTALE).
    Stale {
        /// The sequence number of the frame.
        sequence: u64,
        /// The last sequence number that the server has accepted.
        last_sequence: u64,
    },
}

impl BeatError {
    /// Returns the `errno` of this error in C.
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
    /// The size of a frame in bytes.
    pub const SIZE: usize = 56;

    /// Signs this beat for the connection with this nonce, and returns the frame.
    ///
    /// # Errors
    /// [`BeatError::NoSequence`] for sequence number 0.
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

    /// Returns the number of the client that a frame claims to be from. The number is not verified. Use it only to find
    /// the key for [`verify`](Self::verify).
    ///
    /// # Errors
    /// [`BeatError::NotAFrame`] if the magic, the version or the reserved zeros are wrong.
    pub fn client(frame: &Frame) -> Result<u64, BeatError> {
        let (signed, _) = read(frame)?;
        Ok(beat(signed).client)
    }

    /// Verifies a frame, and returns its beat. The frame must be signed with this key for the connection with this
    /// nonce. Its sequence number must be higher than `last_sequence`, which is 0 before the first beat.
    ///
    /// The MAC is compared in constant time. The sequence number is checked only after that.
    ///
    /// # Errors
    /// [`BeatError::NotAFrame`], [`BeatError::Forged`]; [`BeatError::Stale`] for a genuine frame whose sequence
    /// number is not higher.
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

/// Returns the signed part of a frame, and its MAC, which is not verified yet.
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

/// The number of bytes of stack to wipe. It exceeds the use of the HMAC, about 1 KiB in a release build, and is small
/// enough for the stack of a signal handler.
const STACK: usize = 2048;

/// Computes the MAC of the signed part of a frame.
///
/// The crates wipe their hash states, but neither the padded key that `hmac` has on the stack, nor spilled registers.
/// So a function that is not inlined, `hmac`, computes the MAC. Afterwards this function wipes the stack that `hmac`
/// has used.
fn tag(key: Key<'_>, nonce: &Nonce, signed: &Signed) -> Result<Tag, BeatError> {
    let tag = hmac(key, nonce, signed);
    zeroize::zeroize_stack::<STACK>();
    tag
}

#[inline(never)]
fn hmac(Key(key): Key<'_>, Nonce(nonce): &Nonce, signed: &Signed) -> Result<Tag, BeatError> {
    // HMAC accepts a key of any length, so this error does not occur.
    let mut hmac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| BeatError::ShortKey(key.len()))?;
    hmac.update(nonce);
    hmac.update(signed.as_flattened());
    Ok(hmac.finalize().into_bytes().into())
}
