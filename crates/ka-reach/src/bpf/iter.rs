//! The two programs of the tcp iterator, which is called once for each TCP socket of a network namespace, with the socket
//! locked: one tells what the socket has, one sets it. Documentation/bpf/bpf_iterators.rst

use ka_core::{Config, Settings, SockOpt, Timer};
use ka_policy::Mode;

use super::btf::Types;
use super::insn::{Assembler, Cond, Helper, Insn, Label, Reg, Size};
use super::rule::{FREE, Rule, SOCKET, WRITES, get};

/// Where things are in `struct bpf_iter__tcp`, and in the `struct bpf_iter_meta` that it points to.
const META: i16 = 0;
const SK_COMMON: i16 = 8;
const META_SEQ: i16 = 0;

/// Where the context is kept, and what is told of a socket is put together, on the stack.
const CONTEXT: i16 = FREE - 8;
const RECORD: i16 = CONTEXT - 40;

/// The options that are told, in their order in a record.
const TOLD: [SockOpt; 5] = [
    SockOpt::KeepAlive,
    SockOpt::Timer(Timer::Idle),
    SockOpt::Timer(Timer::Intvl),
    SockOpt::Timer(Timer::Cnt),
    SockOpt::Timer(Timer::UserTimeout),
];

/// What is told of a socket: its cookie, as sock_diag(7) has it, then the five options.
const TOLD_SIZE: i16 = 8 + 4 * 5 + 4;
/// What is told of one that was to be set: its cookie, how many options were written, and an errno, negative, or 0.
const SET_SIZE: i16 = 8 + 4 + 4;

/// Which sockets are meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Only {
    /// Those with this port, here or at the other end.
    pub port: Option<u16>,
    /// Those of this cgroup and what is below it, by its number, which is its folder's inode.
    pub cgroup: Option<u64>,
}

/// Tells what each socket has.
pub(super) fn teller() -> Vec<Insn> {
    let mut program = Assembler::default();
    let skip = program.label();
    begin(&mut program, skip);
    cookie(&mut program);
    // record.option = getsockopt(option), of each
    for (option, place) in TOLD.into_iter().zip((RECORD + 8..).step_by(4)) {
        get(&mut program, option, skip);
        program.store(Size::Word, Reg::R10, place, Reg::R0);
    }
    // For the kernel the record is whole.
    program.store(Size::Word, Reg::R10, RECORD + TOLD_SIZE - 4, 0);
    tell(&mut program, TOLD_SIZE);
    end(&mut program, skip);
    program.finish()
}

/// Returns the program that sets each selected socket and writes a record of the result. The program counts the sockets
/// that it sets; the count is in a map. Returns `None` if the kernel's types differ from the expected ones.
pub(super) fn setter(
    types: &Types<'_>,
    config: &Config,
    mode: Mode,
    dry_run: bool,
    only: Only,
    counter: i32,
) -> Option<Vec<Insn>> {
    let mut program = Assembler::default();
    let [skip, done, counted] = std::array::from_fn(|_| program.label());
    begin(&mut program, skip);
    if let Some(port) = only.port {
        skip_other_ports(&mut program, types, port, skip)?;
    }
    if let Some(cgroup) = only.cgroup {
        skip_other_cgroups(&mut program, types, cgroup, skip, done)?;
    } else {
        cookie(&mut program);
    }
    if !dry_run {
        wait_for_room(&mut program, types, done)?;
    }
    // What is refused goes to done with the error in R0.
    Rule { config, mode, blind: false, dry_run }.write(&mut program, done);
    program.mov(Reg::R0, 0);
    program.place(done);
    // if (writes) counter += 1;
    program.jump_if(WRITES, Cond::Equal, 0, counted);
    program.load_map_value(Reg::R1, counter);
    program.load(Size::Double, Reg::R2, Reg::R1, 0);
    program.add(Reg::R2, 1);
    program.store(Size::Double, Reg::R1, 0, Reg::R2);
    program.place(counted);
    // record.writes = writes; record.error = error;
    program.store(Size::Word, Reg::R10, RECORD + 8, WRITES);
    program.store(Size::Word, Reg::R10, RECORD + 12, Reg::R0);
    tell(&mut program, SET_SIZE);
    end(&mut program, skip);
    Some(program.finish())
}

/// Finds the socket. The last call has none, and a connection that is only asked for, or waits for its time to be over,
/// is no socket yet, or none any more.
fn begin(program: &mut Assembler, skip: Label) {
    // struct sock_common *socket = context->sk_common; if (!socket) goto skip;
    program.store(Size::Double, Reg::R10, CONTEXT, Reg::R1);
    program.load(Size::Double, SOCKET, Reg::R1, SK_COMMON);
    program.jump_if_null(SOCKET, skip);
    // socket = bpf_skc_to_tcp_sock(socket); if (!socket) goto skip;
    program.mov(Reg::R1, SOCKET);
    program.call(Helper::SkcToTcpSock);
    program.jump_if_null(Reg::R0, skip);
    program.mov(SOCKET, Reg::R0);
}

/// `record.cookie = bpf_get_socket_cookie(socket);`
fn cookie(program: &mut Assembler) {
    program.mov(Reg::R1, SOCKET);
    program.call(Helper::GetSocketCookie);
    program.store(Size::Double, Reg::R10, RECORD, Reg::R0);
}

/// `if (there is no room for a record) { writes = 0; error = 0; goto done; }`
///
/// What the kernel has no room for it forgets, and calls the program once more for the same socket, when there is some.
/// A socket that was set at the first call would then be told of as one that had it all already.
fn wait_for_room(program: &mut Assembler, types: &Types<'_>, done: Label) -> Option<()> {
    let room = program.label();
    seq(program);
    // if (seq->count + size < seq->size) goto room;
    program.load(Size::Double, Reg::R2, Reg::R1, types.offset("seq_file", "count")?);
    program.add(Reg::R2, i32::from(SET_SIZE));
    program.load(Size::Double, Reg::R3, Reg::R1, types.offset("seq_file", "size")?);
    program.jump_if_above(Reg::R3, Reg::R2, room);
    program.mov(WRITES, 0);
    program.mov(Reg::R0, 0);
    program.jump(done);
    program.place(room);
    Some(())
}

/// `R1 = context->meta->seq;`
fn seq(program: &mut Assembler) {
    program.load(Size::Double, Reg::R1, Reg::R10, CONTEXT);
    program.load(Size::Double, Reg::R1, Reg::R1, META);
    program.load(Size::Double, Reg::R1, Reg::R1, META_SEQ);
}

/// `bpf_seq_write(context->meta->seq, &record, size);`
fn tell(program: &mut Assembler, size: i16) {
    seq(program);
    program.mov(Reg::R2, Reg::R10);
    program.add(Reg::R2, i32::from(RECORD));
    program.mov(Reg::R3, i32::from(size));
    program.call(Helper::SeqWrite);
}

/// `skip: return 0;`
fn end(program: &mut Assembler, skip: Label) {
    program.place(skip);
    program.mov(Reg::R0, 0);
    program.exit();
}

fn skip_other_ports(program: &mut Assembler, types: &Types<'_>, port: u16, skip: Label) -> Option<()> {
    let meant = program.label();
    // if (socket->skc_num == port || socket->skc_dport == htons(port)) goto meant; else goto skip;
    program.load(Size::Half, Reg::R1, SOCKET, types.offset("sock_common", "skc_num")?);
    program.jump_if(Reg::R1, Cond::Equal, i32::from(port), meant);
    program.load(Size::Half, Reg::R1, SOCKET, types.offset("sock_common", "skc_dport")?);
    program.jump_if(Reg::R1, Cond::NotEqual, i32::from(port.to_be()), skip);
    program.place(meant);
    Some(())
}

/// A socket belongs to the cgroup that its maker was in when it made the socket. An accepted socket belongs to the
/// cgroup of its listener.
///
/// Users can nest cgroups to any depth, but the verifier requires a bound. A socket in a deeper cgroup goes to `done`
/// with an error, because it may be selected.
fn skip_other_cgroups(
    program: &mut Assembler,
    types: &Types<'_>,
    cgroup: u64,
    skip: Label,
    done: Label,
) -> Option<()> {
    const DEEPEST: i32 = 1024;
    let (up, meant) = (program.label(), program.label());
    let data = types.offset("sock", "sk_cgrp_data")?;
    let within = types.offset("sock_cgroup_data", "cgroup")?;
    let node = types.offset("cgroup", "kn")?;
    let number = types.offset("kernfs_node", "id")?;
    let own = types.offset("cgroup", "self")?;
    let parent = types.offset("cgroup_subsys_state", "parent")?;
    let of = types.offset("cgroup_subsys_state", "cgroup")?;
    cookie(program);
    // struct cgroup *cgroup = socket->sk_cgrp_data.cgroup;
    program.load(Size::Double, Reg::R7, SOCKET, data.checked_add(within)?);
    program.load_u64(Reg::R8, cgroup);
    program.mov(Reg::R9, DEEPEST);
    // up: if (cgroup->kn->id == wanted) goto meant;
    program.place(up);
    program.load(Size::Double, Reg::R1, Reg::R7, node);
    program.load(Size::Double, Reg::R1, Reg::R1, number);
    program.jump_if_same(Reg::R1, Reg::R8, meant);
    // if (!cgroup->self.parent) goto skip; cgroup = cgroup->self.parent->cgroup;
    program.load(Size::Double, Reg::R7, Reg::R7, own.checked_add(parent)?);
    program.jump_if_null(Reg::R7, skip);
    program.load(Size::Double, Reg::R7, Reg::R7, of);
    // if (--depth) goto up; writes = 0; error = -ELOOP; goto done;
    program.add(Reg::R9, -1);
    program.jump_if(Reg::R9, Cond::NotEqual, 0, up);
    program.mov(WRITES, 0);
    program.mov(Reg::R0, -super::TOO_DEEP);
    program.jump(done);
    program.place(meant);
    Some(())
}

/// What a socket has, by its cookie.
pub(super) fn told(records: &[u8]) -> impl Iterator<Item = (u64, Settings)> {
    records.chunks_exact(TOLD_SIZE.unsigned_abs().into()).filter_map(|record| {
        let [on, idle, intvl, cnt, user_timeout] = words(record)?;
        let settings = Settings { enabled: on != 0, idle, intvl, cnt, user_timeout: Some(user_timeout) };
        Some((u64::from_ne_bytes(*record.first_chunk()?), settings))
    })
}

/// How a socket fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    pub cookie: u64,
    /// How many options were written.
    pub writes: i32,
    /// The errno of the one that was not; 0 where all were.
    pub errno: i32,
}

/// The size of a record of [`done`].
pub(super) const RECORD_SIZE: usize = SET_SIZE.unsigned_abs() as usize;

pub(super) fn done(records: &[u8]) -> impl Iterator<Item = Done> {
    records.chunks_exact(RECORD_SIZE).filter_map(|record| {
        let [writes, error] = words(record)?;
        let cookie = u64::from_ne_bytes(*record.first_chunk()?);
        Some(Done { cookie, writes, errno: error.saturating_neg() })
    })
}

/// The words behind a record's cookie.
fn words<const N: usize>(record: &[u8]) -> Option<[i32; N]> {
    let mut words = record.get(8..)?.chunks_exact(4);
    let mut found = [0; N];
    for slot in &mut found {
        *slot = i32::from_ne_bytes(*words.next()?.first_chunk()?);
    }
    Some(found)
}
