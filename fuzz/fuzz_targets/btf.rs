//! Reads the kernel's type information (BTF), which may be broken. The results must equal those of a second reader,
//! which reads the whole file. A search must end soon.
//!
//! The first byte is the length of a structure's name, the second that of a member's name. Then come both names and the
//! file.

#![no_main]

use std::collections::HashMap;

use ka_fuzz::allocations;
use ka_fuzz::input::Input;
use ka_reach::fuzz::Types;
use libfuzzer_sys::fuzz_target;

const STRUCT: u32 = 4;
const FUNC: u32 = 12;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let (one, other) = (usize::from(input.byte() % 32), usize::from(input.byte() % 32));
    let (structure, member) = (input.bytes(one), input.bytes(other));
    let (Ok(structure), Ok(member)) = (std::str::from_utf8(structure), std::str::from_utf8(member)) else {
        return;
    };
    let file = input.0.to_vec();
    let reference = Reference::parse(&file);
    let names = [(FUNC, structure), (STRUCT, structure)];
    let Some(types) = allocations::within(4096 + 8 * file.len(), || Types::parse(&file, &names)) else {
        return assert!(reference.is_none());
    };
    let reference = reference.unwrap();
    // A name cannot contain a zero byte.
    let is_name = |name: &str| !name.contains('\0');
    if is_name(structure) {
        assert_eq!(types.function(structure), reference.function(structure));
    }
    let offset = types.offset(structure, member);
    if is_name(structure) && is_name(member) && reference.is_small(structure) {
        assert_eq!(offset, reference.offset(structure, member));
    }
});

/// The contents of the file: the kind and name of each type, and its members.
struct Reference {
    types: Vec<(u32, Option<String>, Vec<Member>)>,
}

struct Member {
    /// The name, or `None` for a member without a name.
    name: Option<String>,
    place: u32,
    other: u32,
    bits: u32,
}

impl Reference {
    fn parse(file: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(file.get(at..at + 4)?.try_into().ok()?));
        let size = |at: usize| word(at).map(|word| word as usize);
        if file.get(..2)? != 0xeb9f_u16.to_ne_bytes() {
            return None;
        }
        let (header, types, length, names) = (size(4)?, size(8)?, size(12)?, size(16)?);
        let (mut at, names) = (header + types, header + names);
        let end = at + length;
        if end > file.len() || names > file.len() {
            return None;
        }
        let name = |offset: u32| {
            let rest = file.get(names + offset as usize..)?;
            let end = rest.iter().position(|byte| *byte == 0)?;
            Some(String::from_utf8_lossy(&rest[..end]).into_owned())
        };
        let mut found = Vec::new();
        while at < end {
            let (called, info, _) = (word(at)?, word(at + 4)?, word(at + 8)?);
            let (kind, count) = (info >> 24 & 31, (info & 0xffff) as usize);
            let each = match kind {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => 12 * count,
                6 | 13 => 8 * count,
                2 | 7..=12 | 16 | 18 => 0,
                _ => return None,
            };
            let mut members = Vec::new();
            if matches!(kind, 4 | 5) {
                for n in 0..count {
                    let place = at + 12 + 12 * n;
                    let (Some(called), Some(other), Some(offset)) =
                        (word(place), word(place + 4), word(place + 8))
                    else {
                        // ka visits it too, so it counts for the size of the structure.
                        members.push(Member { name: None, place: 1, other: 0, bits: 0 });
                        continue;
                    };
                    let bits = if info >> 31 == 1 { offset & 0x00ff_ffff } else { offset };
                    members.push(Member { name: name(called), place: called, other, bits });
                }
            }
            found.push((kind, name(called), members));
            at += 12 + each;
        }
        Some(Self { types: found })
    }

    /// Returns whether a structure is small enough to search all of it. A search in a larger one may stop early.
    fn is_small(&self, structure: &str) -> bool {
        self.find(STRUCT, structure).is_none_or(|at| self.members(at, 16, &mut HashMap::new()) < 10_000)
    }

    /// Returns the number of members, including those of nested structures without a name.
    fn members(&self, at: usize, depth: u32, known: &mut HashMap<(usize, u32), u64>) -> u64 {
        let Some((4 | 5, _, members)) = self.types.get(at).filter(|_| depth > 0) else { return 0 };
        if let Some(count) = known.get(&(at, depth)) {
            return *count;
        }
        let mut count = 0_u64;
        for member in members {
            let inner = usize::checked_sub(member.other as usize, 1).filter(|_| member.place == 0);
            let within = inner.map_or(0, |inner| self.members(inner, depth - 1, known));
            count = count.saturating_add(within + 1).min(u64::MAX / 2);
        }
        known.insert((at, depth), count);
        count
    }

    fn find(&self, kind: u32, name: &str) -> Option<usize> {
        self.types.iter().position(|found| found.0 == kind && found.1.as_deref() == Some(name))
    }

    fn function(&self, name: &str) -> Option<u32> {
        self.find(FUNC, name).map(|at| u32::try_from(at + 1).unwrap())
    }

    fn offset(&self, structure: &str, member: &str) -> Option<i16> {
        let bits = self.bits(self.find(STRUCT, structure)?, member, 16)?;
        (bits % 8 == 0).then_some(bits / 8)?.try_into().ok()
    }

    fn bits(&self, at: usize, wanted: &str, depth: u32) -> Option<u64> {
        let (kind, _, members) = self.types.get(at)?;
        if depth == 0 || !matches!(kind, 4 | 5) {
            return None;
        }
        members.iter().find_map(|member| {
            if member.place == 0 {
                let inner = self.bits((member.other as usize).checked_sub(1)?, wanted, depth - 1)?;
                Some(u64::from(member.bits) + inner).filter(|bits| u32::try_from(*bits).is_ok())
            } else {
                (member.name.as_deref() == Some(wanted)).then_some(member.bits.into())
            }
        })
    }
}
