//! Finds system-call instructions for socket calls in machine code.
//!
//! A preloaded library replaces functions of the C library. Some programs do not call those functions, because their
//! runtime contains the `syscall` instruction (Free Pascal, Rust's rustix, inline assembler). Such a program bypasses
//! the preloaded library.
//!
//! The bytes of the instruction alone prove nothing. On x86_64 they are `0f 05`, and these two bytes also occur by
//! chance in other instructions. Of 815 dynamic programs of a Debian 12 machine, 442 import no socket function (sh,
//! env, make, date, dd...). The two bytes occur in 125 of these 442 programs or in their libraries. Also, many real
//! system calls have nothing to do with sockets, such as futex(2) in a thread library.
//!
//! So the code before the instruction must also load the number of a socket call into its register:
//!
//! - The number is that of socket, connect, listen, accept or accept4. It may also be an argument of the function,
//!   which then makes any system call for its caller.
//! - The instructions from this load to the system call are contiguous.
//!
//! This rule selects one of the 442 programs. It was compiled with Free Pascal, and its runtime does make such calls.
//! Of all 2,111 programs and libraries of the machine, the rule selects 10: C libraries, static programs, and
//! programs of Go and Free Pascal.
//!
//! If the rule misses a program, ka preloads the library, and the program bypasses it. If the rule selects a program
//! wrongly, ka runs the program under a supervisor, which reaches its sockets too.

use object::elf;

/// The number of bytes before a system call that are searched for the load. Code is read in pieces, so each piece
/// repeats this many bytes of the previous one.
pub(super) const OVERLAP: usize = 64;

/// Returns whether code for this machine contains system-call instructions for socket calls. Always false for machines
/// other than x86_64 and aarch64.
pub(super) fn calls_sockets(machine: elf::Machine, code: &[u8]) -> bool {
    match machine {
        elf::EM_X86_64 => x86_64::calls_sockets(code),
        elf::EM_AARCH64 => aarch64::calls_sockets(code),
        _ => false,
    }
}

/// The value in the register that holds the number of the system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CallNumber {
    /// A constant.
    Number(u64),
    /// An argument of the function: its first one, or one on the stack.
    Argument,
    /// Anything else. For example, a compiler may copy a number from another register if it needs the number twice.
    Other,
}

mod x86_64 {
    use memchr::memmem;

    use super::{CallNumber, OVERLAP};

    /// The numbers of socket, connect, accept, listen and accept4. arch/x86/entry/syscalls/syscall_64.tbl
    const SOCKET_CALLS: [u64; 5] = [41, 42, 43, 50, 288];

    const SYSCALL: [u8; 2] = [0x0f, 0x05];

    /// Register numbers in an instruction: rdi, rsp and rbp.
    const FIRST_ARGUMENT: u8 = 7;
    const STACK: u8 = 4;
    const FRAME: u8 = 5;

    pub(super) fn calls_sockets(code: &[u8]) -> bool {
        memmem::find_iter(code, &SYSCALL).any(|place| {
            // If 0f 05 is part of an address or a displacement, the next byte is mostly its high byte, which is 0. A
            // real instruction after a system call does not start with 0.
            let follows = code.get(place.saturating_add(SYSCALL.len()));
            let before = code.get(place.saturating_sub(OVERLAP)..place).unwrap_or_default();
            follows.is_some_and(|byte| *byte != 0)
                && match load_before(before) {
                    Some(CallNumber::Number(number)) => SOCKET_CALLS.contains(&number),
                    Some(CallNumber::Argument) => true,
                    Some(CallNumber::Other) | None => false,
                }
        })
    }

    /// Finds the load of the call number for a system call that directly follows this code.
    ///
    /// x86 code cannot be decoded backwards. So this function tries to decode an instruction at each earlier byte. It
    /// accepts an instruction if it ends where the system call or an accepted instruction starts. A load of a constant
    /// is certain. The bytes of a load of an argument may also be the end of a longer instruction, so it counts only if
    /// no constant is found.
    fn load_before(code: &[u8]) -> Option<CallNumber> {
        // An element is true if instructions from this place on end exactly at the end of the code and do not change
        // the register.
        let mut is_clean = [false; OVERLAP + 1];
        *is_clean.get_mut(code.len())? = true;
        let mut argument = None;
        for start in (0..code.len()).rev() {
            let Some((length, load)) = code.get(start..).and_then(instruction) else { continue };
            if start.checked_add(length).and_then(|end| is_clean.get(end)) != Some(&true) {
                continue;
            }
            match load {
                None => *is_clean.get_mut(start)? = true,
                Some(CallNumber::Number(_)) => return load,
                Some(CallNumber::Argument) => {
                    // With a REX prefix, this is another instruction, which the next iteration reads.
                    let prefix = start.checked_sub(1).and_then(|place| code.get(place));
                    if prefix.is_none_or(|byte| byte & 0xf0 != 0x40) {
                        argument = argument.or(load);
                    }
                }
                Some(CallNumber::Other) => {}
            }
        }
        argument
    }

    /// Returns the length of an instruction and its effect on rax. Returns `None` for an unknown instruction. This
    /// knows the instructions that compilers emit before a system call.
    fn instruction(code: &[u8]) -> Option<(usize, Option<CallNumber>)> {
        // push imm8; pop rax: a compiler that optimizes for size loads a small number this way.
        if let [0x6a, number, 0x58, ..] = code {
            return Some((3, Some(CallNumber::Number(u64::from(*number)))));
        }
        let mut at = 0_usize;
        while matches!(code.get(at)?, 0x66 | 0xf2 | 0xf3) && at < 2 {
            at = at.checked_add(1)?;
        }
        let mut rex = 0;
        if code.get(at)? & 0xf0 == 0x40 {
            rex = *code.get(at)?;
            at = at.checked_add(1)?;
        }
        let opcode = *code.get(at)?;
        at = at.checked_add(1)?;
        let (length, load) = if opcode == 0x0f {
            let opcode = *code.get(at)?;
            at = at.checked_add(1)?;
            two_byte(opcode, rex, code.get(at..)?)?
        } else {
            one_byte(opcode, rex, code.get(at..)?)?
        };
        let length = at.checked_add(length)?;
        (length <= code.len()).then_some((length, load))
    }

    /// The operands of an instruction, from its ModRM byte: a register, and a register or memory.
    struct Operands {
        /// The length of the encoded operands in bytes: the ModRM byte, the SIB byte and the displacement.
        length: usize,
        mode: u8,
        reg: u8,
        rm: u8,
        is_reg_rax: bool,
        is_rm_rax: bool,
    }

    impl Operands {
        fn read(rest: &[u8], rex: u8) -> Option<Self> {
            let byte = *rest.first()?;
            let (mode, reg, rm) = (byte >> 6, byte >> 3 & 7, byte & 7);
            let has_index = mode != 3 && rm == 4;
            let base = if has_index { *rest.get(1)? & 7 } else { rm };
            let distance = match mode {
                1 => 1,
                2 => 4,
                0 if base == 5 => 4,
                _ => 0,
            };
            Some(Self {
                length: 1_usize.checked_add(usize::from(has_index))?.checked_add(distance)?,
                mode,
                reg,
                rm,
                is_reg_rax: reg == 0 && rex & HIGH_REG == 0,
                is_rm_rax: mode == 3 && rm == 0 && rex & HIGH_RM == 0,
            })
        }
    }

    /// Bit W of the REX prefix: the operand has 64 bits.
    const WIDE: u8 = 8;
    /// Bit R of the REX prefix: `reg` is one of the registers r8 to r15.
    const HIGH_REG: u8 = 4;
    /// Bit B of the REX prefix: `rm` is one of the registers r8 to r15.
    const HIGH_RM: u8 = 1;

    /// Decodes an instruction whose opcode follows 0f. Returns the number of bytes after the opcode, and the effect on
    /// rax.
    fn two_byte(opcode: u8, rex: u8, rest: &[u8]) -> Option<(usize, Option<CallNumber>)> {
        let operands = || Operands::read(rest, rex);
        Some(match opcode {
            // endbr64, nop, moves of xmm registers.
            0x1e | 0x1f | 0x10 | 0x11 | 0x16 | 0x17 | 0x28 | 0x29 | 0x57 | 0x6e | 0x6f | 0x7f | 0xd6
            | 0xef => (operands()?.length, None),
            // Conditional jumps.
            0x80..=0x8f => (4, None),
            // cmov, movzx, movsx.
            0x40..=0x4f | 0xb6 | 0xb7 | 0xbe | 0xbf => {
                let Operands { length, is_reg_rax, .. } = operands()?;
                (length, is_reg_rax.then_some(CallNumber::Other))
            }
            _ => return None,
        })
    }

    /// Decodes an instruction with a one-byte opcode. Returns the same values as [`two_byte`].
    fn one_byte(opcode: u8, rex: u8, rest: &[u8]) -> Option<(usize, Option<CallNumber>)> {
        let operands = || Operands::read(rest, rex);
        let number = |at: usize| {
            let bytes = rest.get(at..at.checked_add(4)?)?.first_chunk()?;
            Some(CallNumber::Number(u64::from(u32::from_le_bytes(*bytes))))
        };
        let argument = |is: bool| if is { CallNumber::Argument } else { CallNumber::Other };
        Some(match opcode {
            // push; pop.
            0x50..=0x57 | 0x90 => (0, None),
            0x58..=0x5f => (0, (opcode == 0x58 && rex & HIGH_RM == 0).then_some(CallNumber::Other)),
            // mov of a constant.
            0xb0 if rex & HIGH_RM == 0 => (1, Some(CallNumber::Number(u64::from(*rest.first()?)))),
            // With an 8-bit constant: conditional jumps, push, comparisons, mov to another register. The next arm has
            // the same with a 32-bit constant.
            0x70..=0x7f | 0x6a | 0x3c | 0xa8 | 0xb0..=0xb7 => (1, None),
            0x68 | 0x3d | 0xa9 => (4, None),
            0xb8..=0xbf => {
                let is_rax = opcode == 0xb8 && rex & HIGH_RM == 0;
                (if rex & WIDE == 0 { 4 } else { 8 }, if is_rax { Some(number(0)?) } else { None })
            }
            0xc7 => {
                let Operands { length, is_rm_rax, .. } = operands()?;
                (length.checked_add(4)?, if is_rm_rax { Some(number(length)?) } else { None })
            }
            0xc6 => (operands()?.length.checked_add(1)?, None),
            // xor of eax with itself.
            0x31 | 0x33 if rest.first() == Some(&0xc0) && rex & (HIGH_REG | HIGH_RM) == 0 => {
                (1, Some(CallNumber::Number(0)))
            }
            // mov to a register, movsxd.
            0x8b | 0x63 => {
                let Operands { length, mode, rm, is_reg_rax, .. } = operands()?;
                let is_first_argument = mode == 3 && rm == FIRST_ARGUMENT;
                let is_local = matches!(mode, 1 | 2) && matches!(rm, STACK | FRAME);
                let load = argument(rex & HIGH_RM == 0 && (is_first_argument || is_local));
                (length, is_reg_rax.then_some(load))
            }
            // mov from a register.
            0x89 => {
                let Operands { length, reg, is_rm_rax, .. } = operands()?;
                let load = argument(rex & HIGH_REG == 0 && reg == FIRST_ARGUMENT);
                (length, is_rm_rax.then_some(load))
            }
            // lea, and arithmetic into a register.
            0x8d | 0x8a | 0x03 | 0x0b | 0x23 | 0x2b | 0x33 => {
                let Operands { length, is_reg_rax, .. } = operands()?;
                (length, is_reg_rax.then_some(CallNumber::Other))
            }
            // Arithmetic into a register or memory. In the next arm, the other operand is a constant.
            0x88 | 0x01 | 0x09 | 0x21 | 0x29 | 0x31 | 0xd1 | 0xd3 => {
                let Operands { length, is_rm_rax, .. } = operands()?;
                (length, is_rm_rax.then_some(CallNumber::Other))
            }
            0x83 | 0xc1 | 0x81 => {
                let Operands { length, reg, is_rm_rax, .. } = operands()?;
                let is_comparison = opcode != 0xc1 && reg == 7;
                let size = if opcode == 0x81 { 4 } else { 1 };
                (length.checked_add(size)?, (is_rm_rax && !is_comparison).then_some(CallNumber::Other))
            }
            // Comparisons.
            0x38 | 0x39 | 0x3a | 0x3b | 0x84 | 0x85 => (operands()?.length, None),
            _ => return None,
        })
    }
}

mod aarch64 {
    use super::{CallNumber, OVERLAP};

    /// The numbers of socket, listen, accept, connect and accept4. include/uapi/asm-generic/unistd.h
    const SOCKET_CALLS: [u64; 5] = [198, 201, 202, 203, 242];

    /// The instruction `svc #0`.
    const SVC: u32 = 0xd400_0001;

    /// The lowest base register of a load from the stack: x29 is the frame pointer, and 31 the stack pointer.
    const FRAME: u32 = 29;

    pub(super) fn calls_sockets(code: &[u8]) -> bool {
        let (words, _) = code.as_chunks::<4>();
        let word = |place: usize| words.get(place).copied().map(u32::from_le_bytes);
        (0..words.len()).filter(|place| word(*place) == Some(SVC)).any(|place| {
            let before = place.saturating_sub(OVERLAP / 4)..place;
            match before.rev().filter_map(word).find_map(load) {
                Some(CallNumber::Number(number)) => SOCKET_CALLS.contains(&number),
                Some(CallNumber::Argument) => true,
                Some(CallNumber::Other) | None => false,
            }
        })
    }

    /// Returns the value that an instruction loads into x8, the register for the number of the system call. Returns
    /// `Other` for a branch, a call and a return, so that the search stops there.
    fn load(word: u32) -> Option<CallNumber> {
        let register = |shift: u32| word >> shift & 0x1f;
        let is_to_x8 = register(0) == 8;
        let argument = |is: bool| if is { CallNumber::Argument } else { CallNumber::Other };
        match word {
            // mov w8, #number; mov x8, #number: movz without a shift.
            _ if word & 0x7fe0_001f == 0x5280_0008 => Some(CallNumber::Number(u64::from(word >> 5 & 0xffff))),
            // mov from a register, which is orr with zr.
            _ if word & 0x7fe0_ffe0 == 0x2a00_03e0 && is_to_x8 => Some(argument(register(16) == 0)),
            // sxtw from a register: the number was an int.
            _ if word & 0xffff_fc00 == 0x9340_7c00 && is_to_x8 => Some(argument(register(5) == 0)),
            // ldr with an unsigned offset; ldur, and ldr with a register, pre-indexed or post-indexed offset.
            _ if word & 0xbfc0_0000 == 0xb940_0000 && is_to_x8 => Some(argument(register(5) >= FRAME)),
            _ if word & 0xbfe0_0000 == 0xb840_0000 && is_to_x8 => Some(argument(register(5) >= FRAME)),
            // b, bl; br, blr, ret.
            _ if word & 0x7c00_0000 == 0x1400_0000 || word & 0xff9f_fc1f == 0xd61f_0000 => {
                Some(CallNumber::Other)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use object::elf::{EM_386, EM_AARCH64, EM_X86_64};

    use super::calls_sockets;

    fn x86_64(text: &str) -> bool {
        let code: Vec<u8> =
            text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        calls_sockets(EM_X86_64, &code)
    }

    #[test]
    fn socket_system_calls_are_found() {
        for text in [
            // rustix: mov eax, 41; mov esi, 0x80801; mov rdx, rcx; syscall; mov rdi, rax.
            "b8 29 00 00 00 be 01 08 08 00 48 89 ca 0f 05 48 89 c7",
            // mov rax, 42; syscall; ret.
            "48 c7 c0 2a 00 00 00 0f 05 c3",
            // push 50; pop rax; xor edx, edx; syscall; cmp rax.
            "6a 32 58 31 d2 0f 05 48 3d 01 f0 ff ff",
            // Free Pascal's function for any call: mov rax, rdi; mov rdi, rsi; mov rsi, rdx; syscall; cmp rax.
            "48 89 f8 48 89 f7 48 89 d6 0f 05 48 3d 01 f0 ff ff",
            // mov eax, [rbp - 4]; mov r8, r9; syscall; ret.
            "8b 45 fc 4d 89 c8 0f 05 c3",
            // mov eax, 288; test rdi, rdi; je +2; lea r10, [rsp + 0x28]; syscall; nop.
            "b8 20 01 00 00 48 85 ff 74 02 4c 8d 54 24 28 0f 05 90",
        ] {
            assert!(x86_64(text), "{text}");
        }
    }

    #[test]
    fn other_system_calls_and_chance_bytes_are_ignored() {
        for text in [
            // futex: mov eax, 202; mov r8, rdi (whose tail is mov eax, edi); syscall.
            "b8 ca 00 00 00 49 89 f8 0f 05 c3",
            // mov r12d, 9; mov eax, r12d; syscall.
            "41 bc 09 00 00 00 44 89 e0 0f 05 c3",
            // read: xor eax, eax; syscall.
            "31 c0 0f 05 c3",
            // mov rax, rdi; mov eax, 202; syscall.
            "48 89 f8 b8 ca 00 00 00 0f 05 c3",
            // mov eax, 41; mov eax, 39; syscall.
            "b8 29 00 00 00 b8 27 00 00 00 0f 05 c3",
            // mov eax, edi; lea rdi, [rip + 0x050f12]; ret.
            "89 f8 48 8d 3d 12 0f 05 00 c3",
            // call +0x50f12, behind a load.
            "b8 29 00 00 00 e8 12 0f 05 00",
            // No load of a number.
            "0f 05 c3",
            "b8 29 00 00 00 c3 0f 05",
            "",
        ] {
            assert!(!x86_64(text), "{text}");
        }
        // Other machines have no such instruction.
        assert!(!calls_sockets(EM_386, b"\xb8\x29\x00\x00\x00\x0f\x05\xc3"));
    }

    #[test]
    fn socket_system_calls_are_found_on_aarch64() {
        let calls = |words: &[u32]| {
            let code: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            calls_sockets(EM_AARCH64, &code)
        };
        let (svc, ret, mov_x8_x0) = (0xd400_0001, 0xd65f_03c0, 0xaa00_03e8);
        let number = |number: u32| 0xd280_0008 | number << 5;
        assert!(calls(&[number(203), 0xaa01_03e2, svc, ret]));
        assert!(calls(&[mov_x8_x0, 0xaa01_03e0, svc, ret]));
        assert!(!calls(&[number(98), svc, ret]));
        assert!(!calls(&[number(203), ret, svc]));
        assert!(!calls(&[mov_x8_x0, number(98), svc]));
        assert!(!calls(&[svc]));
    }
}
