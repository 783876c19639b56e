//! The kernel's types (BTF), from /sys/kernel/btf/vmlinux: offsets of structure members, and IDs of functions.
//! Documentation/bpf/btf.rst
//!
//! A BPF program reads members of kernel structures by their offset, which differs from kernel to kernel. The file has
//! five megabytes. Reading it takes longer than setting ten thousand sockets. So ka parses it only once, looks for all
//! names that it needs, and stores only these.

const MAGIC: u16 = 0xeb9f;
const PTR: u32 = 2;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const TYPEDEF: u32 = 8;
const FUNC: u32 = 12;

/// The maximum depth of nested anonymous structures. Valid files have fewer levels.
const DEEPEST: u32 = 16;

/// The maximum number of members that one search visits. The largest structure has fewer, including the members of its
/// anonymous structures. In a broken file, each structure may contain all others many times.
const MOST_MEMBERS: u32 = 10_000;

/// `struct btf_type`
#[derive(Clone, Copy)]
struct Type {
    /// The offset of the name in the file's strings.
    name: u32,
    /// `vlen` (16 bits), the kind (5 bits), and a flag.
    info: u32,
    /// A size, or the ID of another type.
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

    /// Returns whether the upper 8 bits of a member's offset are the width of a bit field. Offsets are in bits.
    const fn has_bit_fields(self) -> bool {
        self.info >> 31 == 1
    }

    /// Returns the number of bytes that follow the type, which depends on its kind. `None` if the kind is unknown.
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

/// A type to look for: its kind (`BTF_KIND_*`) and name.
pub type Named<'a> = (u32, &'a str);

/// The types of the iterator's programs.
pub(super) const NAMES: [Named<'static>; 9] = [
    (FUNC, "bpf_iter_tcp"),
    (FUNC, "sk_getsockopt"),
    (STRUCT, "cgroup"),
    (STRUCT, "cgroup_subsys_state"),
    (STRUCT, "kernfs_node"),
    (STRUCT, "seq_file"),
    (STRUCT, "sock"),
    (STRUCT, "sock_cgroup_data"),
    (STRUCT, "sock_common"),
];

/// The types of the tracing program.
pub(super) const TRACED: [Named<'static>; 7] = [
    (STRUCT, "file"),
    (STRUCT, "inode"),
    (STRUCT, "net"),
    (STRUCT, "sock_common"),
    (STRUCT, "socket"),
    (STRUCT, "tcp_sock"),
    (TYPEDEF, SET_STATE),
];
/// The type of the tracepoint `sock:inet_sock_set_state`.
const SET_STATE: &str = "btf_trace_inet_sock_set_state";

/// A member of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The offset in the structure, in bytes.
    pub offset: i16,
    /// The size in bytes.
    pub size: u32,
}

/// The kernel's types.
pub struct Types<'a> {
    bytes: &'a [u8],
    /// The types that were looked for, and their IDs.
    found: Vec<(Named<'a>, u32)>,
    /// The offset of every [`Types::STEP`]th type in the file, from that of ID 1 on.
    places: Vec<usize>,
    /// The number of types.
    count: u32,
    /// The offset of the strings in the file.
    strings: usize,
}

impl<'a> Types<'a> {
    /// The number of types from one stored offset to the next.
    const STEP: usize = 256;

    /// Parses a BTF file and looks for these types. Returns `None` if the file is broken or contains a type of an
    /// unknown kind.
    #[must_use]
    pub fn parse(bytes: &'a [u8], names: &[Named<'a>]) -> Option<Self> {
        let magic = u16::from_ne_bytes(*bytes.first_chunk()?);
        let header = |place| Some(word(bytes, place)? as usize);
        let start = header(4)?;
        let (mut place, strings) = (start.checked_add(header(8)?)?, start.checked_add(header(16)?)?);
        let end = place.checked_add(header(12)?)?;
        if magic != MAGIC || end > bytes.len() || strings > bytes.len() {
            return None;
        }
        let mut types = Self { bytes, found: Vec::new(), places: Vec::new(), count: 0, strings };
        for number in 1.. {
            if place >= end {
                break;
            }
            if (number as usize - 1).is_multiple_of(Self::STEP) {
                types.places.push(place);
            }
            let found = type_at(bytes, place)?;
            let is_wanted =
                |(kind, name): &&Named<'_>| *kind == found.kind() && types.is_named(found.name, name);
            if matches!(found.kind(), STRUCT | FUNC | TYPEDEF)
                && let Some(name) = names.iter().find(is_wanted)
            {
                types.found.push((*name, number));
            }
            place += Type::SIZE + found.rest()?;
            types.count = number;
        }
        Some(types)
    }

    /// Returns a type by its ID, and its offset in the file.
    fn numbered(&self, number: u32) -> Option<(usize, Type)> {
        let before = (number as usize).checked_sub(1).filter(|_| number <= self.count)?;
        let mut place = *self.places.get(before / Self::STEP)?;
        for _ in 0..before % Self::STEP {
            place += Type::SIZE + type_at(self.bytes, place)?.rest()?;
        }
        Some((place, type_at(self.bytes, place)?))
    }

    fn is_named(&self, name: u32, wanted: &str) -> bool {
        let string = self.bytes.get(self.strings + name as usize..).unwrap_or_default();
        string.strip_prefix(wanted.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }

    /// Returns the ID of a type that [`Types::parse`] has found. If several have this name, returns the first.
    fn find(&self, kind: u32, name: &str) -> Option<u32> {
        self.found.iter().find(|(named, _)| *named == (kind, name)).map(|(_, number)| *number)
    }

    /// Returns the ID of a kernel function.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<u32> {
        self.find(FUNC, name)
    }

    /// Returns the ID of the tracepoint `sock:inet_sock_set_state`.
    pub(super) fn set_state(&self) -> Option<u32> {
        self.find(TYPEDEF, SET_STATE)
    }

    /// Returns a member by its path from a structure, such as `icsk_ack.lrcvtime`. Returns `None` if there is no such
    /// member, or if it is a bit field or an array.
    #[must_use]
    pub fn field(&self, structure: &str, path: &str) -> Option<Field> {
        let mut left = MOST_MEMBERS;
        let (mut number, mut bits) = (self.find(STRUCT, structure)?, 0_u32);
        for member in path.split('.') {
            let found = self.offset_in(self.unqualified(number)?, member, DEEPEST, &mut left)?;
            (number, bits) = (found.number, bits.checked_add(found.bits)?);
            if found.width != 0 {
                return None;
            }
        }
        let (_, found) = self.numbered(self.unqualified(number)?)?;
        let size = match found.kind() {
            PTR => u32::try_from(size_of::<usize>()).ok()?,
            // INT, STRUCT, UNION, ENUM
            1 | STRUCT | UNION | 6 => found.other,
            _ => return None,
        };
        Some(Field { offset: i16::try_from(bits.is_multiple_of(8).then_some(bits / 8)?).ok()?, size })
    }

    /// Follows typedefs and qualifiers to the type that they name.
    fn unqualified(&self, mut number: u32) -> Option<u32> {
        for _ in 0..DEEPEST {
            let (_, found) = self.numbered(number)?;
            // TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG
            if !matches!(found.kind(), TYPEDEF..=11 | 18) {
                return Some(number);
            }
            number = found.other;
        }
        None
    }

    /// Returns the offset of a structure's member, in bytes. As in C, members of an anonymous structure belong to the
    /// structure that contains it. Returns `None` if there is no such member, or if it is a bit field.
    #[must_use]
    pub fn offset(&self, structure: &str, member: &str) -> Option<i16> {
        let mut left = MOST_MEMBERS;
        let Member { bits, .. } =
            self.offset_in(self.find(STRUCT, structure)?, member, DEEPEST, &mut left)?;
        i16::try_from(bits.is_multiple_of(8).then_some(bits / 8)?).ok()
    }

    /// Returns a member of the type `number`. `left` counts down the members that may be visited.
    fn offset_in(&self, number: u32, member: &str, depth: u32, left: &mut u32) -> Option<Member> {
        let (place, owner) = self.numbered(number)?;
        let deeper = depth.checked_sub(1)?;
        if !matches!(owner.kind(), STRUCT | UNION) {
            return None;
        }
        (0..owner.count()).find_map(|n| {
            *left = left.checked_sub(1)?;
            // `struct btf_member` has the layout of `Type`: its name, the ID of its type, its offset.
            let found = type_at(self.bytes, place + Type::SIZE * (n + 1))?;
            let (bits, width) = if owner.has_bit_fields() {
                (found.other & 0x00ff_ffff, found.other >> 24)
            } else {
                (found.other, 0)
            };
            if found.name == 0 {
                let inner = self.offset_in(found.info, member, deeper, left)?;
                Some(Member { bits: bits.checked_add(inner.bits)?, ..inner })
            } else {
                self.is_named(found.name, member).then_some(Member { number: found.info, bits, width })
            }
        })
    }
}

/// A member that [`Types::offset_in`] has found.
struct Member {
    /// The ID of its type.
    number: u32,
    /// Its offset in bits.
    bits: u32,
    /// The width of a bit field, otherwise 0.
    width: u32,
}

fn word(bytes: &[u8], place: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(place..)?.first_chunk()?))
}

fn type_at(bytes: &[u8], place: usize) -> Option<Type> {
    Some(Type { name: word(bytes, place)?, info: word(bytes, place + 4)?, other: word(bytes, place + 8)? })
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write as _};

    use super::{FUNC, Field, NAMES, Named, STRUCT, TRACED, Types};
    use crate::bpf::host;
    use crate::error::Error;

    const NAMED: [Named<'_>; 3] = [(FUNC, "f"), (STRUCT, "outer"), (STRUCT, "oute")];

    fn parsed(bytes: &[u8]) -> Option<Types<'_>> {
        Types::parse(bytes, &NAMED)
    }

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
        file(&types, strings)
    }

    fn file(types: &[u32], strings: &[u8]) -> Vec<u8> {
        let types: Vec<u8> = types.iter().copied().flat_map(u32::to_ne_bytes).collect();
        let length = |slice: &[u8]| u32::try_from(slice.len()).unwrap();
        let mut bytes = [&0xeb9f_u16.to_ne_bytes()[..], &[1, 0]].concat();
        for word in [24, 0, length(&types), length(&types), length(strings)] {
            bytes.extend(u32::to_ne_bytes(word));
        }
        [bytes, types, strings.to_vec()].concat()
    }

    #[test]
    fn members_and_functions_are_found() {
        let made = made();
        let types = parsed(&made).unwrap();
        assert_eq!(types.function("f"), Some(6));
        assert_eq!(types.function("outer"), None);
        let offsets = ["a", "b", "c", "d", "e"].map(|member| types.offset("outer", member));
        assert_eq!(offsets, [Some(0), Some(4), Some(4), Some(8), None]);
        assert_eq!(types.offset("oute", "a"), None);
        assert_eq!(types.field("outer", "d"), Some(Field { offset: 8, size: 4 }));
        assert_eq!(types.field("outer", "a.b"), None);
    }

    #[test]
    fn truncated_and_corrupted_files_do_not_panic() {
        let whole = made();
        for length in 0..whole.len() {
            if let Some(types) = parsed(whole.get(..length).unwrap()) {
                let _ = (types.function("f"), types.offset("outer", "d"));
            }
        }
        for place in 0..whole.len() {
            let mut bytes = whole.clone();
            *bytes.get_mut(place).unwrap() ^= 0xff;
            if let Some(types) = parsed(&bytes) {
                let _ = (types.function("f"), types.offset("outer", "d"));
            }
        }
    }

    #[test]
    fn a_search_in_a_structure_that_contains_itself_ends() {
        // struct outer { struct outer; struct outer; … }: visiting sixteen levels would take too long.
        let strings = b"\0outer\0";
        let types = [&[1, 4 << 24 | 8, 8][..], &[0, 1, 0].repeat(8)].concat();
        let file = file(&types, strings);
        let types = parsed(&file).unwrap();
        assert_eq!(types.offset("outer", "member"), None);
    }

    #[test]
    fn types_of_the_running_kernel_are_read() {
        let types = match host::kernel_types() {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                // The test runner hides what println! prints.
                let _ = writeln!(io::stderr(), "SKIPPED: this kernel does not describe its types (BTF)");
                return;
            }
            types => types.unwrap(),
        };
        for (kind, name) in NAMES {
            assert!(types.find(kind, name).is_some() || name == "sk_getsockopt", "{name}");
        }
        // `__sk_common` is the first member of all sockets.
        assert_eq!(types.offset("sock", "__sk_common"), Some(0));
        assert!(types.offset("sock_common", "skc_num").is_some());
        assert!(types.offset("cgroup", "kn").is_some());
        let traced = host::types(&TRACED).unwrap();
        assert!(traced.set_state().is_some());
        let cookie = "inet_conn.icsk_inet.sk.__sk_common.skc_cookie";
        assert_eq!(traced.field("tcp_sock", cookie).map(|field| field.size), Some(8));
        // `kernel_types` may have mapped the file. Reading it must give the same types.
        let file = std::fs::read(host::TYPES).unwrap();
        let read = Types::parse(&file, &NAMES).unwrap();
        assert_eq!(read.found, types.found);
    }

    #[test]
    fn a_type_is_found_by_its_id() {
        // The file has more than `Types::STEP` types. Every third is a structure with a member, the others are
        // integers.
        let mut types = Vec::new();
        for number in 1..=1000_u32 {
            types.extend(if number % 3 == 0 {
                vec![0, 4 << 24 | 1, number, 0, 1, 0]
            } else {
                vec![0, 1 << 24, number, 32]
            });
        }
        let types: Vec<u8> = types.into_iter().flat_map(u32::to_ne_bytes).collect();
        let mut bytes = [&0xeb9f_u16.to_ne_bytes()[..], &[1, 0]].concat();
        let length = u32::try_from(types.len()).unwrap();
        for word in [24, 0, length, length, 1] {
            bytes.extend(u32::to_ne_bytes(word));
        }
        let file = [bytes, types, vec![0]].concat();
        let types = parsed(&file).unwrap();
        for number in 1..=1000 {
            assert_eq!(types.numbered(number).unwrap().1.other, number);
        }
        assert!(types.numbered(0).is_none());
    }
}
