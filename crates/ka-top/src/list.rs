//! The sockets of the view: their order, the filter, and the selection.

use std::cmp::Reverse;

use ka_cli::socket_row::{Counts, SocketRow, Totals};
use ka_reach::listing::ListedSocket;
use ka_reach::risk::Risk;

/// The sort key of the list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SortOrder {
    /// Sockets that need attention come first.
    #[default]
    Attention,
    Process,
    State,
    Local,
    Peer,
    Idle,
    Next,
    Lost,
}

impl SortOrder {
    const ALL: [Self; 8] = [
        Self::Attention,
        Self::Process,
        Self::State,
        Self::Local,
        Self::Peer,
        Self::Idle,
        Self::Next,
        Self::Lost,
    ];

    /// Returns the name in the title of the view.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Process => "process",
            Self::State => "state",
            Self::Local => "local address",
            Self::Peer => "peer",
            Self::Idle => "idle",
            Self::Next => "next probe",
            Self::Lost => "lost probes",
        }
    }

    /// Returns the order that is `places` after this one, in a cycle.
    fn after(self, places: usize) -> Self {
        let own = Self::ALL.iter().position(|order| *order == self).unwrap_or(0);
        Self::ALL.get((own + places) % Self::ALL.len()).copied().unwrap_or_default()
    }

    pub(crate) fn next(self) -> Self {
        self.after(1)
    }

    pub(crate) fn previous(self) -> Self {
        self.after(Self::ALL.len() - 1)
    }
}

/// Returns the rank of a socket by its risks. 0 is the most urgent.
fn urgency(row: &SocketRow<'_>) -> usize {
    /// Unanswered comes first, because that peer is probably gone. Suspended comes last, because data is often
    /// unacknowledged for a moment.
    const ORDER: [Risk; Risk::ALL.len()] =
        [Risk::Unanswered, Risk::Off, Risk::Slow, Risk::UserTimeout, Risk::Suspended];
    ORDER.iter().position(|risk| row.risks.contains(risk)).unwrap_or(ORDER.len())
}

/// The filter of the list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Words that a socket must match.
    pub(crate) text: String,
    /// True if only sockets with a risk are shown.
    pub(crate) is_risky: bool,
}

impl Filter {
    pub(crate) fn is_active(&self) -> bool {
        self.is_risky || !self.text.trim().is_empty()
    }

    fn matches(&self, row: &SocketRow<'_>) -> bool {
        if self.is_risky && row.risks.is_empty() {
            return false;
        }
        let mut words = self.text.split_whitespace().peekable();
        if words.peek().is_none() {
            return true;
        }
        let keepalive = match row.keepalive {
            Some(true) => "on",
            Some(false) => "off",
            None => "unknown",
        };
        let mut texts = vec![row.holder(), row.local.to_string()];
        texts.extend(row.peer.map(|peer| peer.to_string()));
        texts.push(row.state.to_owned());
        texts.extend(row.risks.iter().map(|risk| risk.name().to_owned()));
        for text in &mut texts {
            *text = text.to_lowercase();
        }
        words.all(|word| {
            let word = word.to_lowercase();
            if let Ok(number) = word.parse::<u32>() {
                let ports =
                    [Some(row.local), row.peer].into_iter().flatten().map(|end| u32::from(end.port()));
                let pids = row.pid.iter().chain(row.others).map(|pid| pid.unsigned_abs());
                ports.chain(pids).any(|own| own == number)
            } else {
                word == keepalive || texts.iter().any(|text| text.contains(&word))
            }
        })
    }
}

/// A socket, recognized in each listing. Before Linux 5.9, network namespaces counted their cookies separately.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SocketId {
    cookie: u64,
    netns: Option<std::sync::Arc<str>>,
}

impl SocketId {
    pub(crate) fn of(socket: &ListedSocket) -> Self {
        Self { cookie: socket.entry.cookie, netns: socket.netns.clone() }
    }

    pub(crate) fn is_of(&self, socket: &ListedSocket) -> bool {
        self.cookie == socket.entry.cookie && self.netns == socket.netns
    }
}

/// The list.
#[derive(Default)]
pub(crate) struct SocketList {
    sockets: Vec<ListedSocket>,
    /// The indices of the sockets that match the filter, in the order of the view.
    shown: Vec<usize>,
    /// The numbers of all sockets.
    counts: Counts,
    /// The numbers of the sockets that match the filter.
    totals: Totals,
    order: SortOrder,
    is_reversed: bool,
    filter: Filter,
    /// The place of the selected socket in `shown`.
    place: usize,
    selected: Option<SocketId>,
    /// The place of the first visible socket in `shown`.
    first: usize,
}

impl SocketList {
    /// Replaces the sockets by those of a new listing. The selection stays on the same socket. If that socket is gone,
    /// it stays at the same place.
    pub(crate) fn replace(&mut self, sockets: Vec<ListedSocket>) {
        self.sockets = sockets;
        self.arrange();
    }

    pub(crate) fn sockets(&self) -> &[ListedSocket] {
        &self.sockets
    }

    pub(crate) const fn order(&self) -> (SortOrder, bool) {
        (self.order, self.is_reversed)
    }

    pub(crate) fn sort_by(&mut self, order: SortOrder, is_reversed: bool) {
        self.order = order;
        self.is_reversed = is_reversed;
        self.arrange();
    }

    pub(crate) const fn filter(&self) -> &Filter {
        &self.filter
    }

    pub(crate) fn set_filter(&mut self, filter: Filter) {
        self.filter = filter;
        self.arrange();
    }

    /// Returns the line with the numbers of sockets.
    pub(crate) fn totals(&self) -> String {
        self.totals.line(&self.counts, self.filter.is_active())
    }

    /// Returns a message if ka lacks the rights to know all about the shown sockets.
    pub(crate) fn lacks_rights(&self) -> Option<String> {
        self.totals.lacks_rights()
    }

    fn arrange(&mut self) {
        self.counts = Counts::of(&self.sockets);
        self.totals = Totals::default();
        let mut rows = Vec::with_capacity(self.sockets.len());
        for (index, socket) in self.sockets.iter().enumerate() {
            let row = SocketRow::new(socket);
            if self.filter.matches(&row) {
                self.totals.add(&row);
                rows.push((index, row));
            }
        }
        let unknown_last = |value: Option<u64>| (value.is_none(), value);
        match self.order {
            SortOrder::Attention => rows.sort_by_cached_key(|(_, row)| {
                (urgency(row), Reverse(row.unanswered_probes), row.keepalive.is_some(), row.order())
            }),
            SortOrder::Process => rows.sort_by_cached_key(|(_, row)| {
                (row.pid.is_none(), row.comm.as_deref().map(str::to_lowercase), row.order())
            }),
            SortOrder::State => rows.sort_by_cached_key(|(_, row)| (row.state, row.order())),
            SortOrder::Local => rows.sort_by_cached_key(|(_, row)| (row.local, row.order())),
            SortOrder::Peer => {
                rows.sort_by_cached_key(|(_, row)| (row.peer.is_none(), row.peer, row.order()));
            }
            SortOrder::Idle => rows.sort_by_cached_key(|(_, row)| {
                (unknown_last(row.idle.and_then(|idle| u64::try_from(idle).ok())), row.order())
            }),
            SortOrder::Next => {
                rows.sort_by_cached_key(|(_, row)| (unknown_last(row.next_probe_ms), row.order()));
            }
            SortOrder::Lost => {
                rows.sort_by_cached_key(|(_, row)| (Reverse(row.unanswered_probes), row.order()));
            }
        }
        self.shown = rows.into_iter().map(|(index, _)| index).collect();
        if self.is_reversed {
            self.shown.reverse();
        }
        let is_selected = |index: &usize| {
            let socket = self.sockets.get(*index);
            socket.zip(self.selected.as_ref()).is_some_and(|(socket, id)| id.is_of(socket))
        };
        let place = self.shown.iter().position(is_selected);
        self.select(place.unwrap_or(self.place));
    }

    /// Selects the socket at this place of the view, or the last one.
    pub(crate) fn select(&mut self, place: usize) {
        self.place = place.min(self.shown.len().saturating_sub(1));
        self.selected = self.selected().map(SocketId::of);
    }

    /// Moves the selection down by `places`, which may be negative.
    pub(crate) fn step(&mut self, places: isize) {
        self.select(self.place.saturating_add_signed(places));
    }

    pub(crate) const fn place(&self) -> usize {
        self.place
    }

    /// Returns the number of sockets that match the filter.
    pub(crate) const fn len(&self) -> usize {
        self.shown.len()
    }

    /// Returns the selected socket.
    pub(crate) fn selected(&self) -> Option<&ListedSocket> {
        self.sockets.get(*self.shown.get(self.place)?)
    }

    /// Returns the sockets that fit into `lines`, among them the selected one. `true` marks the selected socket.
    pub(crate) fn visible(&mut self, lines: usize) -> Vec<(bool, &ListedSocket)> {
        let most = self.shown.len().saturating_sub(lines);
        let lowest = (self.place + 1).saturating_sub(lines);
        self.first = self.first.clamp(lowest.min(self.place), self.place).min(most);
        let places = self.shown.iter().enumerate().skip(self.first).take(lines);
        places.filter_map(|(place, index)| Some((place == self.place, self.sockets.get(*index)?))).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use ka_core::{Settings, Status};
    use ka_reach::diag::{DiagSocket, State, Timer};
    use ka_reach::listing::{ListedSocket, SocketOwner};

    use super::{Filter, SocketList, SortOrder};

    /// A connection of the process `server` with the PID 100, whose ports are 80 and 1000 plus this number.
    pub(crate) fn connection(number: u16) -> ListedSocket {
        let settings = Settings {
            enabled: true,
            idle: 60,
            intvl: 10,
            cnt: 6,
            user_timeout: Some(0),
            rto_max: Some(120_000),
        };
        let status = Status {
            state: 1,
            probes: 0,
            retransmits: 0,
            unacked: 0,
            last_ack_ms: 0,
            last_recv_ms: 0,
            last_send_ms: 0,
            rtt_us: 0,
        };
        ListedSocket {
            entry: DiagSocket {
                local: "192.0.2.1:80".parse().unwrap(),
                peer: Some(([198, 51, 100, 7], 1000 + number).into()),
                state: State::Established,
                timer: None,
                cookie: u64::from(number) + 1,
                inode: u32::from(number) + 500,
                cgroup: 0,
                status: Some(status),
            },
            owner: Some(SocketOwner { pid: 100, fd: number.into(), comm: Some(b"server"[..].into()) }),
            others: Vec::new(),
            netns: None,
            settings: Some(settings),
            error: None,
        }
    }

    fn change(mut socket: ListedSocket, settings: impl FnOnce(&mut Settings)) -> ListedSocket {
        settings(socket.settings.as_mut().unwrap());
        socket
    }

    fn with_probes(mut socket: ListedSocket, probes: u32) -> ListedSocket {
        socket.entry.status.as_mut().unwrap().probes = probes;
        socket
    }

    /// Returns the numbers of the shown connections.
    fn shown(list: &mut SocketList) -> Vec<u64> {
        list.visible(100).iter().map(|(_, socket)| socket.entry.cookie - 1).collect()
    }

    fn list(sockets: Vec<ListedSocket>) -> SocketList {
        let mut list = SocketList::default();
        list.replace(sockets);
        list
    }

    #[test]
    fn sockets_that_need_attention_come_first() {
        let mut suspended = connection(5);
        suspended.entry.status.as_mut().unwrap().unacked = 1;
        let mut unknown = connection(6);
        (unknown.settings, unknown.entry.timer) = (None, None);
        unknown.entry.state = State::SynSent;
        let sockets = vec![
            connection(0),
            suspended,
            change(connection(4), |settings| settings.user_timeout = Some(5000)),
            change(connection(3), |settings| settings.idle = 351),
            change(connection(2), |settings| settings.enabled = false),
            with_probes(connection(1), 3),
            unknown,
            with_probes(connection(7), 1),
            with_probes(connection(8), 4),
        ];
        assert_eq!(shown(&mut list(sockets)), [8, 1, 2, 3, 4, 5, 7, 6, 0]);
    }

    #[test]
    fn each_order_sorts_by_its_column() {
        let mut timed = change(connection(1), |settings| settings.idle = 10);
        timed.entry.timer = Some(Timer::KeepAlive(std::time::Duration::from_secs(9)));
        let mut listener = connection(2);
        (listener.entry.state, listener.entry.peer) = (State::Listen, None);
        listener.entry.local = "192.0.2.1:22".parse().unwrap();
        listener.owner = Some(SocketOwner { pid: 7, fd: 3, comm: Some(b"Zebra"[..].into()) });
        let mut orphan = with_probes(connection(3), 1);
        (orphan.owner, orphan.settings) = (None, None);
        let mut list = list(vec![connection(0), timed, listener, orphan]);
        for (order, expected) in [
            (SortOrder::Process, [0, 1, 2, 3]),
            (SortOrder::State, [0, 1, 3, 2]),
            (SortOrder::Local, [2, 0, 1, 3]),
            (SortOrder::Peer, [0, 1, 3, 2]),
            (SortOrder::Idle, [1, 2, 0, 3]),
            (SortOrder::Next, [1, 2, 0, 3]),
            (SortOrder::Lost, [3, 2, 0, 1]),
        ] {
            list.sort_by(order, false);
            assert_eq!(shown(&mut list), expected, "{order:?}");
            list.sort_by(order, true);
            let reversed: Vec<_> = expected.into_iter().rev().collect();
            assert_eq!(shown(&mut list), reversed, "{order:?}");
        }
        let mut order = SortOrder::Attention;
        for _ in SortOrder::ALL {
            assert_eq!(order.next().previous(), order);
            order = order.next();
        }
        assert_eq!(order, SortOrder::Attention);
    }

    #[test]
    fn each_word_of_the_filter_must_match() {
        let mut off = change(connection(1), |settings| settings.enabled = false);
        off.owner.as_mut().unwrap().pid = 1080;
        off.others = vec![4321];
        let mut listener = connection(2);
        (listener.entry.state, listener.entry.peer) = (State::Listen, None);
        listener.entry.local = "[2001:db8::1]:8080".parse().unwrap();
        let mut list = list(vec![connection(0), off, listener]);
        for (text, expected) in [
            ("", &[1, 2, 0][..]),
            ("  ", &[1, 2, 0]),
            // A number is a whole port or PID.
            ("80", &[1, 0]),
            ("8080", &[2]),
            ("1080", &[1]),
            ("4321", &[1]),
            ("108", &[]),
            ("SERVER", &[1, 2, 0]),
            ("server/100", &[2, 0]),
            ("198.51", &[1, 0]),
            ("2001:DB8", &[2]),
            ("listen", &[2]),
            ("off", &[1]),
            ("on 80", &[0]),
            ("on off", &[]),
            ("\u{1b}", &[]),
        ] {
            list.set_filter(Filter { text: text.to_owned(), is_risky: false });
            assert_eq!(shown(&mut list), expected, "{text:?}");
        }
        list.set_filter(Filter { text: String::new(), is_risky: true });
        assert_eq!(shown(&mut list), [1]);
        assert_eq!(list.totals(), "1 of 3 sockets listed: 1 off. Not listed: 2 on");
    }

    #[test]
    fn the_selection_follows_its_socket() {
        let mut list = list((0..10).map(connection).collect());
        list.select(4);
        let selected = |list: &SocketList| list.selected().map(|socket| socket.entry.cookie - 1);
        assert_eq!(selected(&list), Some(4));
        list.replace((2..10).rev().map(connection).collect());
        assert_eq!((selected(&list), list.place()), (Some(4), 2));
        // The socket is gone, so its place is selected.
        list.replace((5..10).map(connection).collect());
        assert_eq!((selected(&list), list.place()), (Some(7), 2));
        list.replace(vec![connection(9)]);
        assert_eq!((selected(&list), list.place()), (Some(9), 0));
        list.replace(Vec::new());
        assert_eq!((selected(&list), list.place()), (None, 0));
        list.step(3);
        list.step(-3);
        list.replace((0..3).map(connection).collect());
        assert_eq!(selected(&list), Some(0));
        list.step(isize::MAX);
        assert_eq!(selected(&list), Some(2));
        list.step(isize::MIN);
        assert_eq!(selected(&list), Some(0));
    }

    #[test]
    fn the_selected_socket_is_visible() {
        let mut list = list((0..100).map(connection).collect());
        for (place, lines, first) in [(0, 10, 0), (9, 10, 0), (10, 10, 1), (99, 10, 90), (95, 10, 90)] {
            list.select(place);
            let visible = list.visible(lines);
            assert_eq!(visible.len(), lines);
            assert_eq!(visible[0].1.entry.cookie - 1, first, "{place}");
            let selected: Vec<_> = visible.iter().filter(|(is_selected, _)| *is_selected).collect();
            assert_eq!((selected.len(), selected[0].1.entry.cookie - 1), (1, place as u64));
        }
        // A taller terminal shows more sockets above.
        assert_eq!(list.visible(40)[0].1.entry.cookie - 1, 60);
        assert_eq!(list.visible(1000).len(), 100);
        list.select(50);
        assert_eq!(list.visible(1)[0].1.entry.cookie - 1, 50);
    }
}
