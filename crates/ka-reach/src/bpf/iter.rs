//! The two BPF programs of the TCP iterator. One reads the keepalive settings of each socket, the other writes them.
//!
//! The kernel runs the program once for each TCP socket of a network namespace, with the socket locked. The program
//! writes a record about the socket into a buffer, which a process reads from the iterator's descriptor.
//! Documentation/bpf/bpf_iterators.rst

use ka_core::{Config, Settings, SockOpt, Timer};
use ka_policy::Mode;

use super::apply::{Apply, FREE, SOCKET, WRITES, get};
use super::btf::Types;
use super::insn::{Assembler, Cond, Helper, Insn, Label, Reg, Size};

/// Offsets in `struct bpf_iter__tcp`, and in the `struct bpf_iter_meta` that it points to.
const META: i16 = 0;
const SK_COMMON: i16 = 8;
const META_SEQ: i16 = 0;

/// The stack offsets of the context pointer, and of the record that is being built.
const CONTEXT: i16 = FREE - 8;
const RECORD: i16 = CONTEXT - 40;

/// The size of a record of the reader: the socket's cookie (sock_diag(7)), and the options in the order of
/// [`SockOpt::ALL`].
const READ_SIZE: i16 = 8 + 4 * 6;
const _: () = assert!(READ_SIZE.unsigned_abs() as usize == 8 + 4 * SockOpt::ALL.len());
/// The size of a record of the writer: the socket's cookie, the number of written options, and a negative errno or 0.
const SET_SIZE: i16 = 8 + 4 + 4;

/// The sockets of a network namespace to set. The default selects all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketFilter {
    /// Only sockets with this local or peer port.
    pub port: Option<u16>,
    /// Only sockets of this cgroup and of its descendants. The ID is the inode of the cgroup's folder.
    pub cgroup: Option<u64>,
}

/// Returns the program that writes a record of each socket's settings.
pub(super) fn reader() -> Vec<Insn> {
    let mut program = Assembler::default();
    let skip = program.label();
    begin(&mut program, skip);
    cookie(&mut program);
    // for each option: record.option = getsockopt(option);
    for (option, place) in SockOpt::ALL.into_iter().zip((RECORD + 8..).step_by(4)) {
        let lacking = program.label();
        // If the kernel lacks TCP_RTO_MAX_MS, the negative errno is recorded in its place.
        let is_newer = option == SockOpt::Timer(Timer::RtoMax);
        get(&mut program, option, if is_newer { lacking } else { skip });
        program.place(lacking);
        program.store(Size::Word, Reg::R10, place, Reg::R0);
    }
    write_record(&mut program, READ_SIZE);
    end(&mut program, skip);
    program.finish()
}

/// Returns the program that sets each selected socket and writes a record of the result. It counts the sockets that it
/// sets in the map `counter`. Returns `None` if the kernel's types lack an expected member.
pub(super) fn writer(
    types: &Types<'_>,
    config: &Config,
    mode: Mode,
    dry_run: bool,
    selection: SocketFilter,
    counter: i32,
) -> Option<Vec<Insn>> {
    let mut program = Assembler::default();
    let [skip, done, counted] = std::array::from_fn(|_| program.label());
    begin(&mut program, skip);
    if let Some(port) = selection.port {
        skip_other_ports(&mut program, types, port, skip)?;
    }
    if let Some(cgroup) = selection.cgroup {
        skip_other_cgroups(&mut program, types, cgroup, skip, done)?;
    } else {
        cookie(&mut program);
    }
    if !dry_run {
        wait_for_room(&mut program, types, done)?;
    }
    // If the kernel rejects an option, execution continues at `done` with the error in R0.
    Apply { config, mode, blind: false, keeps_lower_rto_max: mode == Mode::Floor, dry_run }
        .emit(&mut program, done);
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
    write_record(&mut program, SET_SIZE);
    end(&mut program, skip);
    Some(program.finish())
}

/// Loads the socket. Skips connection requests and TIME-WAIT entries, which are not full sockets. Also skips the last
/// run of the program, which has no socket.
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
/// If the output buffer has no room for a record, the kernel drops the record. When there is room, the kernel runs the
/// program again for the same socket. If the first run set the socket, the second would report it as unchanged. So the
/// first run must not set the socket.
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
fn write_record(program: &mut Assembler, size: i16) {
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

/// Skips sockets whose local port and peer port both differ from `port`.
fn skip_other_ports(program: &mut Assembler, types: &Types<'_>, port: u16, skip: Label) -> Option<()> {
    let selected = program.label();
    // if (socket->skc_num == port || socket->skc_dport == htons(port)) goto selected; else goto skip;
    program.load(Size::Half, Reg::R1, SOCKET, types.offset("sock_common", "skc_num")?);
    program.jump_if(Reg::R1, Cond::Equal, i32::from(port), selected);
    program.load(Size::Half, Reg::R1, SOCKET, types.offset("sock_common", "skc_dport")?);
    program.jump_if(Reg::R1, Cond::NotEqual, i32::from(port.to_be()), skip);
    program.place(selected);
    Some(())
}

/// Skips sockets outside of a cgroup and its descendants. A socket belongs to the cgroup that its process was in when
/// it created the socket. An accepted socket belongs to the cgroup of its listening socket.
///
/// The instructions visit the cgroup's ancestors one by one. Users can nest cgroups to any depth, but the verifier
/// requires a bound. If the bound is reached, the socket may be selected, so it is reported with an error.
fn skip_other_cgroups(
    program: &mut Assembler,
    types: &Types<'_>,
    cgroup: u64,
    skip: Label,
    done: Label,
) -> Option<()> {
    const DEEPEST: i32 = 1024;
    let (up, selected) = (program.label(), program.label());
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
    // up: if (cgroup->kn->id == wanted) goto selected;
    program.place(up);
    program.load(Size::Double, Reg::R1, Reg::R7, node);
    program.load(Size::Double, Reg::R1, Reg::R1, number);
    program.jump_if_same(Reg::R1, Reg::R8, selected);
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
    program.place(selected);
    Some(())
}

/// Parses the reader's records: the settings of each socket, with its cookie.
pub(super) fn settings(records: &[u8]) -> impl Iterator<Item = (u64, Settings)> {
    records.chunks_exact(READ_SIZE.unsigned_abs().into()).filter_map(|record| {
        let [on, idle, intvl, cnt, user_timeout, rto_max]: [i32; SockOpt::ALL.len()] = words(record)?;
        let settings = Settings {
            enabled: on != 0,
            idle,
            intvl,
            cnt,
            user_timeout: Some(user_timeout),
            rto_max: Some(rto_max).filter(|value| *value >= 0),
        };
        Some((u64::from_ne_bytes(*record.first_chunk()?), settings))
    })
}

/// The result of setting one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetResult {
    /// The socket's cookie, as in sock_diag(7).
    pub cookie: u64,
    /// The number of options that were written, or on a dry run would have been written.
    pub writes: i32,
    /// The errno of the first option that the kernel rejected, or 0 if it accepted all. See [`super::set_error`].
    pub errno: i32,
}

/// The size in bytes of a record that [`results`] parses.
pub(super) const RECORD_SIZE: usize = SET_SIZE.unsigned_abs() as usize;

/// Parses the writer's records.
pub(super) fn results(records: &[u8]) -> impl Iterator<Item = SetResult> {
    records.chunks_exact(RECORD_SIZE).filter_map(|record| {
        let [writes, error] = words(record)?;
        let cookie = u64::from_ne_bytes(*record.first_chunk()?);
        Some(SetResult { cookie, writes, errno: error.saturating_neg() })
    })
}

/// Reads the 32-bit words after a record's cookie.
fn words<const N: usize>(record: &[u8]) -> Option<[i32; N]> {
    let mut words = record.get(8..)?.chunks_exact(4);
    let mut found = [0; N];
    for slot in &mut found {
        *slot = i32::from_ne_bytes(*words.next()?.first_chunk()?);
    }
    Some(found)
}
