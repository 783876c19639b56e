//! The kernel's types, as it describes them itself in /sys/kernel/btf/vmlinux: where a member is in a structure, and the
//! number of a function. Documentation/bpf/btf.rst
//!
//! Only what is asked for is looked at: a file of five megabytes is read and gone through in a few milliseconds.

use std::fs;
use std::io;

pub(super) const FILE: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const FUNC: u32 = 12;

/// How many structures without a name are within each other: more than in any that is sound.
const DEEPEST: u32 = 16;

/// `struct btf_type`: name, then vlen (16 bits), kind (5) and a flag in `info`, then a size or another type's number.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    info: u32,
    other: u32,
}

impl Type {
    const SIZE: usize = 12;

    const fn kind(self) -> u32 {
        self.info >> 24 & 0x1f
    }

    const fn count(self) -> usize {
        (self.info & 0xffff) as usize
    }

    /// Offsets of members are in bits; with this flag their upper 8 bits are the width of a bit field.
    const fn has_bit_fields(self) -> bool {
        self.info >> 31 == 1
    }

    /// How much follows, by kind. `None`: a kind that is newer than this.
    const fn rest(self) -> Option<usize> {
        Some(match self.kind() {
            // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
            2 | 7..=12 | 16 | 18 => 0,
            // INT, VAR, DECL_TAG
            1 | 14 | 17 => 4,
            // ARRAY
            3 => 12,
            // STRUCT, UNION, DATASEC, ENUM64
            4 | 5 | 15 | 19 => 12 * self.count(),
            // ENUM, FUNC_PROTO
            6 | 13 => 8 * self.count(),
            _ => return None,
        })
    }
}

/// The kernel's types.
pub(crate) struct Types {
    bytes: Vec<u8>,
    /// Where each type is; the first has number 1.
    places: Vec<u32>,
    strings: usize,
}

impl Types {
    /// Those of the kernel that runs. One that was built without `CONFIG_DEBUG_INFO_BTF` has none: `NotFound`.
    pub(crate) fn of_the_kernel() -> io::Result<Self> {
        Self::parse(fs::read(FILE)?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{FILE} is not as expected")))
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        let magic = u16::from_ne_bytes(*bytes.first_chunk()?);
        let header = |place| Some(word(&bytes, place)? as usize);
        let start = header(4)?;
        let (mut place, strings) = (start.checked_add(header(8)?)?, start.checked_add(header(16)?)?);
        let end = place.checked_add(header(12)?)?;
        if magic != MAGIC || end > bytes.len() || strings > bytes.len() {
            return None;
        }
        let mut places = Vec::with_capacity((end - place) / (2 * Type::SIZE));
        while place < end {
            places.push(u32::try_from(place).ok()?);
            place += Type::SIZE + type_at(&bytes, place)?.rest()?;
        }
        Some(Self { bytes, places, strings })
    }

    fn numbered(&self, number: u32) -> Option<(usize, Type)> {
        let place = *self.places.get((number as usize).checked_sub(1)?)? as usize;
        Some((place, type_at(&self.bytes, place)?))
    }

    fn is_named(&self, name: u32, wanted: &str) -> bool {
        let string = self.bytes.get(self.strings + name as usize..).unwrap_or_default();
        string.strip_prefix(wanted.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }

    fn find(&self, kind: u32, name: &str) -> Option<u32> {
        let is_it = |place: &u32| {
            type_at(&self.bytes, *place as usize)
                .is_some_and(|found| found.kind() == kind && self.is_named(found.name, name))
        };
        u32::try_from(self.places.iter().position(is_it)? + 1).ok()
    }

    /// The number of a function of the kernel's.
    pub(crate) fn function(&self, name: &str) -> Option<u32> {
        self.find(FUNC, name)
    }

    /// Where a member begins, in bytes. What is in a structure without a name counts as its owner's, as in C.
    pub(crate) fn offset(&self, structure: &str, member: &str) -> Option<i16> {
        let bits = self.offset_in(self.find(STRUCT, structure)?, member, DEEPEST)?;
        i16::try_from(bits.is_multiple_of(8).then_some(bits / 8)?).ok()
    }

    fn offset_in(&self, number: u32, member: &str, depth: u32) -> Option<u32> {
        let (place, owner) = self.numbered(number)?;
        let deeper = depth.checked_sub(1)?;
        if !matches!(owner.kind(), STRUCT | UNION) {
            return None;
        }
        (0..owner.count()).find_map(|n| {
            // A member is laid out as a type is: its name, its type's number, its offset.
            let found = type_at(&self.bytes, place + Type::SIZE * (n + 1))?;
            let offset = if owner.has_bit_fields() { found.other & 0x00ff_ffff } else { found.other };
            if found.name == 0 {
                offset.checked_add(self.offset_in(found.info, member, deeper)?)
            } else {
                self.is_named(found.name, member).then_some(offset)
            }
        })
    }
}

fn word(bytes: &[u8], place: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(place..)?.first_chunk()?))
}

fn type_at(bytes: &[u8], place: usize) -> Option<Type> {
    Some(Type { name: word(bytes, place)?, info: word(bytes, place + 4)?, other: word(bytes, place + 8)? })
}

#[cfg(test)]
mod tests {
    use super::Types;

    /// struct outer { int a; union { int b; struct { int c; int d; }; }; }; int f(void);
    fn made() -> Vec<u8> {
        let strings = b"\0outer\0a\0b\0c\0d\0f\0";
        let place = |name: &str| {
            let quoted = format!("\0{name}\0");
            let found = strings.windows(quoted.len()).position(|window| window == quoted.as_bytes());
            u32::try_from(found.unwrap() + 1).unwrap()
        };
        let kind = |kind: u32, count: u32| kind << 24 | count;
        let types = [
            &[0, kind(1, 0), 4, 32][..],
            // 2: the inner structure, 3: the union
            &[0, kind(4, 2), 8, place("c"), 1, 0, place("d"), 1, 32],
            &[0, kind(5, 2), 8, place("b"), 1, 0, 0, 2, 0],
            &[place("outer"), kind(4, 2), 12, place("a"), 1, 0, 0, 3, 32],
            &[0, kind(13, 0), 1],
            &[place("f"), kind(12, 0), 5],
        ]
        .concat();
        let types: Vec<u8> = types.into_iter().flat_map(u32::to_ne_bytes).collect();
        let length = |slice: &[u8]| u32::try_from(slice.len()).unwrap();
        let mut bytes = [&0xeb9f_u16.to_ne_bytes()[..], &[1, 0]].concat();
        for word in [24, 0, length(&types), length(&types), length(strings)] {
            bytes.extend(u32::to_ne_bytes(word));
        }
        [bytes, types, strings.to_vec()].concat()
    }

    #[test]
    fn members_and_functions_are_found() {
        let types = Types::parse(made()).unwrap();
        assert_eq!(types.function("f"), Some(6));
        assert_eq!(types.function("outer"), None);
        let offsets = ["a", "b", "c", "d", "e"].map(|member| types.offset("outer", member));
        assert_eq!(offsets, [Some(0), Some(4), Some(4), Some(8), None]);
        assert_eq!(types.offset("oute", "a"), None);
    }

    #[test]
    fn what_is_cut_short_is_refused_and_does_not_panic() {
        let whole = made();
        for length in 0..whole.len() {
            if let Some(types) = Types::parse(whole.get(..length).unwrap().to_vec()) {
                let _ = (types.function("f"), types.offset("outer", "d"));
            }
        }
        for place in 0..whole.len() {
            let mut bytes = whole.clone();
            *bytes.get_mut(place).unwrap() ^= 0xff;
            if let Some(types) = Types::parse(bytes) {
                let _ = (types.function("f"), types.offset("outer", "d"));
            }
        }
    }

    #[test]
    fn this_kernel_s_types_are_read() {
        let Ok(types) = Types::of_the_kernel() else { return };
        // The cookie and the first member of all sockets: neither has moved in ten years.
        assert_eq!(types.offset("tcp_sock", "inet_conn"), Some(0));
        assert_eq!(types.offset("sock", "__sk_common"), Some(0));
        assert!(types.offset("sock_common", "skc_num").is_some());
        assert!(types.function("tcp_v4_connect").is_some());
    }
}
