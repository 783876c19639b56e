//! BPF instructions, and an assembler for them. Documentation/bpf/standardization/instruction-set.rst
//!
//! ka generates its programs at run time, with the policy's numbers as constants. So the machine needs neither a
//! compiler nor the kernel's headers.

/// A register. R0 holds results. R1 to R5 hold arguments, and calls clobber them. Calls preserve R6 to R9. R10 points
/// to the end of the 512-byte stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// The size of a load or store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Size {
    Byte = 0x10,
    Half = 0x08,
    Word = 0x00,
    Double = 0x18,
}

/// The condition of a jump. It compares 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Cond {
    Equal = 0x10,
    NotEqual = 0x50,
    /// `left & right`
    AnyBit = 0x40,
    /// Signed.
    Less = 0xc0,
    /// Signed.
    LessOrEqual = 0xd0,
    /// Signed.
    Greater = 0x60,
}

/// A kernel function that programs may call, by its number in <linux/bpf.h>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Helper {
    /// `u64 bpf_ktime_get_ns(void)`
    KtimeGetNs = 5,
    /// `u64 bpf_get_socket_cookie(sk)`
    GetSocketCookie = 46,
    /// `int bpf_setsockopt(socket, level, name, value, size)`
    SetSockOpt = 49,
    /// `int bpf_getsockopt(socket, level, name, value, size)`
    GetSockOpt = 57,
    /// `u64 bpf_jiffies64(void)`
    Jiffies64 = 118,
    /// `int bpf_seq_write(seq, data, size)`
    SeqWrite = 127,
    /// `long bpf_ringbuf_output(ring_buffer, data, size, flags)`
    RingbufOutput = 130,
    /// `struct tcp_sock *bpf_skc_to_tcp_sock(sk)`
    SkcToTcpSock = 137,
}

/// The operand of an instruction: a register or a constant.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operand {
    Reg(Reg),
    Imm(i32),
}

impl From<Reg> for Operand {
    fn from(reg: Reg) -> Self {
        Self::Reg(reg)
    }
}

impl From<i32> for Operand {
    fn from(value: i32) -> Self {
        Self::Imm(value)
    }
}

/// `struct bpf_insn`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Insn {
    code: u8,
    /// Destination and source: see [`registers`].
    registers: u8,
    offset: i16,
    value: i32,
}

const LD: u8 = 0x00;
const LDX: u8 = 0x01;
const ST: u8 = 0x02;
const STX: u8 = 0x03;
const JMP: u8 = 0x05;
const JMP32: u8 = 0x06;
const ALU64: u8 = 0x07;
const MEM: u8 = 0x60;
const ATOMIC: u8 = 0xc0;
const FROM_REGISTER: u8 = 0x08;
const ADD: u8 = 0x00;
const MOV: u8 = 0xb0;
const ALWAYS: u8 = 0x00;
const EQUAL: u8 = 0x10;
const ABOVE: u8 = 0x20;
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;
/// The number in the source field of a 64-bit load whose constant is a map's descriptor. The load returns the map.
const PSEUDO_MAP_FD: u8 = 1;
/// As `PSEUDO_MAP_FD`, but the load returns the address of the map's value. The map must have one entry. Linux 5.2
const PSEUDO_MAP_VALUE: u8 = 2;

/// A jump target.
#[derive(Clone, Copy, Debug)]
pub(super) struct Label(usize);

/// A program under construction. If a label is never placed or is too far away, jumps to it get an offset that the
/// verifier rejects.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    insns: Vec<Insn>,
    places: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    /// Makes a label that is not placed yet.
    pub(super) fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// Places the label before the next instruction.
    pub(super) fn place(&mut self, label: Label) {
        if let Some(place) = self.places.get_mut(label.0) {
            *place = Some(self.insns.len());
        }
    }

    /// `to = from`
    pub(super) fn mov(&mut self, to: Reg, from: impl Into<Operand>) {
        self.push(ALU64 | MOV, to, 0, from.into());
    }

    /// `to += from`
    pub(super) fn add(&mut self, to: Reg, from: impl Into<Operand>) {
        self.push(ALU64 | ADD, to, 0, from.into());
    }

    /// `to = *(size *)(base + offset)`
    pub(super) fn load(&mut self, size: Size, to: Reg, base: Reg, offset: i16) {
        self.raw(LDX | MEM | size as u8, to, base, offset, 0);
    }

    /// `*(size *)(base + offset) = from`
    pub(super) fn store(&mut self, size: Size, base: Reg, offset: i16, from: impl Into<Operand>) {
        match from.into() {
            Operand::Reg(reg) => self.raw(STX | MEM | size as u8, base, reg, offset, 0),
            Operand::Imm(value) => self.raw(ST | MEM | size as u8, base, Reg::R0, offset, value),
        }
    }

    /// `*(u64 *)(base + offset) += from`, without a race against other processors
    pub(super) fn add_atomically(&mut self, base: Reg, offset: i16, from: Reg) {
        self.raw(STX | ATOMIC | Size::Double as u8, base, from, offset, ADD.into());
    }

    /// `goto label`
    pub(super) fn jump(&mut self, label: Label) {
        self.jumps.push((self.insns.len(), label));
        self.raw(JMP | ALWAYS, Reg::R0, Reg::R0, 0, 0);
    }

    /// `if (left COND right) goto label`
    pub(super) fn jump_if(&mut self, left: Reg, cond: Cond, right: impl Into<Operand>, label: Label) {
        self.jumps.push((self.insns.len(), label));
        self.push(JMP32 | cond as u8, left, 0, right.into());
    }

    /// `if (!pointer) goto label`
    pub(super) fn jump_if_null(&mut self, pointer: Reg, label: Label) {
        self.jumps.push((self.insns.len(), label));
        self.push(JMP | EQUAL, pointer, 0, Operand::Imm(0));
    }

    /// `if (left == right) goto label`, comparing 64 bits
    pub(super) fn jump_if_same(&mut self, left: Reg, right: Reg, label: Label) {
        self.jumps.push((self.insns.len(), label));
        self.push(JMP | EQUAL, left, 0, Operand::Reg(right));
    }

    /// `if (left > right) goto label`, comparing 64 bits, unsigned. The verifier learns a pointer's bounds from this
    /// jump.
    pub(super) fn jump_if_above(&mut self, left: Reg, right: Reg, label: Label) {
        self.jumps.push((self.insns.len(), label));
        self.push(JMP | ABOVE, left, 0, Operand::Reg(right));
    }

    /// `R0 = helper(R1, R2, R3, R4, R5)`
    pub(super) fn call(&mut self, helper: Helper) {
        self.raw(JMP | CALL, Reg::R0, Reg::R0, 0, helper as i32);
    }

    /// `return R0`
    pub(super) fn exit(&mut self) {
        self.raw(JMP | EXIT, Reg::R0, Reg::R0, 0, 0);
    }

    /// `to = value`, of 64 bits
    pub(super) fn load_u64(&mut self, to: Reg, value: u64) {
        self.raw(LD | Size::Double as u8, to, Reg::R0, 0, low(value));
        self.insns.push(Insn { value: low(value >> 32), ..Insn::default() });
    }

    /// `to = &map`. The program keeps the map alive, and the kernel lists the map with the program.
    pub(super) fn load_map(&mut self, to: Reg, fd: i32) {
        self.load_of_map(PSEUDO_MAP_FD, to, fd);
    }

    /// `to = &map[0]`, for a map with one entry
    pub(super) fn load_map_value(&mut self, to: Reg, fd: i32) {
        self.load_of_map(PSEUDO_MAP_VALUE, to, fd);
    }

    fn load_of_map(&mut self, pseudo: u8, to: Reg, fd: i32) {
        let registers = registers(to as u8, pseudo);
        self.insns.push(Insn { code: LD | Size::Double as u8, registers, offset: 0, value: fd });
        self.insns.push(Insn::default());
    }

    fn push(&mut self, code: u8, to: Reg, offset: i16, from: Operand) {
        match from {
            Operand::Reg(reg) => self.raw(code | FROM_REGISTER, to, reg, offset, 0),
            Operand::Imm(value) => self.raw(code, to, Reg::R0, offset, value),
        }
    }

    fn raw(&mut self, code: u8, to: Reg, from: Reg, offset: i16, value: i32) {
        self.insns.push(Insn { code, registers: registers(to as u8, from as u8), offset, value });
    }

    /// Returns the program with all jump offsets filled in. Offsets count from the instruction after the jump.
    pub(super) fn finish(mut self) -> Vec<Insn> {
        for (from, label) in self.jumps {
            let to = self.places.get(label.0).copied().flatten();
            let distance = to.and_then(|to| i16::try_from(to.cast_signed() - from.cast_signed() - 1).ok());
            if let Some(insn) = self.insns.get_mut(from) {
                insn.offset = distance.unwrap_or(i16::MAX);
            }
        }
        self.insns
    }
}

/// Packs both registers of an instruction into a byte. In C they are two bit fields, destination first, so their
/// order in the byte depends on the machine's byte order.
const fn registers(to: u8, from: u8) -> u8 {
    if cfg!(target_endian = "big") { to << 4 | from } else { from << 4 | to }
}

/// Returns the low 32 bits, as an instruction holds them.
const fn low(value: u64) -> i32 {
    ((value & 0xffff_ffff) as u32).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::{Assembler, Cond, Helper, Insn, Reg, Size};

    /// The expected bytes are the output of clang's assembler for the same program.
    #[test]
    fn instructions_are_encoded_as_clang_encodes_them() {
        let mut program = Assembler::default();
        let end = program.label();
        program.mov(Reg::R6, Reg::R1);
        program.load(Size::Word, Reg::R2, Reg::R6, 24);
        program.jump_if(Reg::R2, Cond::NotEqual, 6, end);
        program.store(Size::Word, Reg::R10, -8, 60);
        program.store(Size::Double, Reg::R10, -16, Reg::R6);
        program.add(Reg::R4, -8);
        program.call(Helper::SetSockOpt);
        program.load_u64(Reg::R9, 0x1_0000_0002);
        program.add_atomically(Reg::R1, 8, Reg::R2);
        program.place(end);
        program.exit();
        let bytes: Vec<[u8; 8]> = program
            .finish()
            .iter()
            .map(|Insn { code, registers, offset, value }| {
                let registers =
                    if cfg!(target_endian = "big") { registers.rotate_left(4) } else { *registers };
                let bytes = [&[*code, registers][..], &offset.to_le_bytes(), &value.to_le_bytes()].concat();
                bytes.try_into().unwrap()
            })
            .collect();
        assert_eq!(
            bytes,
            [
                [0xbf, 0x16, 0, 0, 0, 0, 0, 0],
                [0x61, 0x62, 24, 0, 0, 0, 0, 0],
                [0x56, 0x02, 7, 0, 6, 0, 0, 0],
                [0x62, 0x0a, 0xf8, 0xff, 60, 0, 0, 0],
                [0x7b, 0x6a, 0xf0, 0xff, 0, 0, 0, 0],
                [0x07, 0x04, 0, 0, 0xf8, 0xff, 0xff, 0xff],
                [0x85, 0, 0, 0, 49, 0, 0, 0],
                [0x18, 0x09, 0, 0, 2, 0, 0, 0],
                [0, 0, 0, 0, 1, 0, 0, 0],
                [0xdb, 0x21, 8, 0, 0, 0, 0, 0],
                [0x95, 0, 0, 0, 0, 0, 0, 0],
            ]
        );
    }

    #[test]
    fn a_jump_to_an_unplaced_label_has_an_invalid_offset() {
        let mut program = Assembler::default();
        let nowhere = program.label();
        program.jump(nowhere);
        assert_eq!(program.finish().first().map(|insn| insn.offset), Some(i16::MAX));
    }
}
