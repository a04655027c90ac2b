package decide

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"matriarch/fsm"
)

// sick lets a node report a sickness; the standbys stream.
func sick(id fsm.NodeID, reason string) func(*GroupView) {
	return func(v *GroupView) {
		for _, s := range []fsm.NodeID{"a", "b", "c"} {
			n := v.State.Nodes[s]
			if n.Report.State == "" {
				n.Report.State, n.Report.Epoch = "streaming", v.Group.Epoch
			}
			if s == id {
				n.Report.Sick, n.Report.SickText = reason, "so it is"
			}
			v.State.Nodes[s] = n
		}
	}
}

// ill is a recruit that says of itself that it is sick.
func ill(id fsm.NodeID, lsn fsm.LSN) Recruit {
	r := rec(id, lsn)
	r.Sick = "its disk is full"
	return r
}

func failedWith(code, errno, text string) Trial {
	return Trial{Failed: true, Code: code, Errno: errno, Text: text}
}

func disk(free, inodes int64) Disk { return Disk{Path: "/d", Free: free, Inodes: inodes} }

const plenty = 1 << 30

func TestDiagnose(t *testing.T) {
	up := func(edit ...func(*Signs)) Signs {
		s := Signs{Running: true, Primary: true, Disks: []Disk{disk(plenty, 100)}}
		for _, f := range edit {
			f(&s)
		}
		return s
	}
	standby := func(s *Signs) { s.Primary = false }
	down := func(s *Signs) { s.Running = false }
	hangs := func(s *Signs) { s.Hangs = true }
	connected := func(s *Signs) { s.Trial.Connected = true }
	trial := func(x Trial) func(*Signs) { return func(s *Signs) { s.Trial = x } }
	disks := func(d ...Disk) func(*Signs) { return func(s *Signs) { s.Disks = d } }
	for _, tc := range []struct {
		name string
		s    Signs
		was  string
		want string
	}{
		{"well", up(), "", ""},
		{"well on a standby", up(standby), "", ""},
		{"not running", up(down), "", ""},
		{"not running, and what it said last", up(down, hangs, trial(failedWith("53100", "", ""))), "", ""},
		{"no answer from the disk", up(func(s *Signs) { s.Silent = true }, hangs), "", SickDiskHangs},
		{"killed, and still there", up(func(s *Signs) { s.Remains = true }, hangs), SickLogHangs, SickDiskHangs},
		{"stopped", up(hangs, func(s *Signs) { s.Stopped = true }), "", SickStopped},
		{"stopped, but sessions come", up(func(s *Signs) { s.Stopped = true }), "", ""},
		{"no new session", up(hangs), "", SickNoSessions},
		{"no new session, the backlog is full", up(trial(failedWith("", "EAGAIN", "resource temporarily unavailable"))), "", SickNoSessions},
		{"no new session on a standby", up(standby, hangs), "", SickNoSessions},
		{"no answer on a standby", up(standby, hangs, connected), "", SickNoSessions},
		{"no write", up(hangs, connected), "", SickLogHangs},
		{"no space, as PostgreSQL says", up(trial(failedWith("53100", "", "could not extend file"))), "", SickNoSpace},
		{"no space, in a panic's words", up(trial(failedWith("XX000", "", "could not write to file: No space left on device"))), "", SickNoSpace},
		{"read-only, by the mount", up(disks(Disk{Path: "/d", Free: plenty, Inodes: 9, ReadOnly: true})), "", SickReadOnly},
		{"read-only, after an error", up(down, disks(Disk{Path: "/d", Free: plenty, Inodes: 9, Errno: "EROFS"})), "", SickReadOnly},
		{"read-only, as PostgreSQL says", up(trial(failedWith("42501", "", "could not open file: Read-only file system"))), "", SickReadOnly},
		{"not allowed, which is no disk's fault", up(trial(failedWith("42501", "", "permission denied"))), "", ""},
		{"errors of the disk", up(disks(Disk{Path: "/d", Errno: "EIO"})), "", SickIO},
		{"errors of the disk, as PostgreSQL says", up(trial(failedWith("58030", "", "could not read block"))), "", SickIO},
		{"out of memory", up(trial(failedWith("53200", "", "out of memory"))), "", SickOutOfMemory},
		{"out of processes", up(trial(failedWith("", "", "could not fork new process for connection"))), "", SickOutOfMemory},
		{"refuses", up(trial(failedWith("57P03", "", "the database system is shutting down"))), "", SickRefuses},
		{"nobody listens", up(trial(failedWith("", "ECONNREFUSED", ""))), "", SickRefuses},
		{"the socket is gone", up(trial(failedWith("", "ENOENT", ""))), "", SickRefuses},
		{"a standby that starts", up(standby, trial(failedWith("57P03", "", "the database system is starting up"))), "", ""},
		{"all connections in use", up(trial(failedWith("53300", "", "sorry, too many clients already"))), "", ""},
		{"a wrong password", up(trial(failedWith("28P01", "", "password authentication failed"))), "", ""},
		{"little room", up(disks(disk(DiskLow-1, -1))), "", SickDiskFull},
		{"just enough room", up(disks(disk(DiskLow, -1))), "", ""},
		{"just enough room, and there was not", up(disks(disk(DiskLow, -1))), SickDiskFull, SickDiskFull},
		{"room again", up(disks(disk(2*DiskLow, -1))), SickDiskFull, ""},
		{"no files left", up(disks(disk(plenty, 0))), "", SickDiskFull},
		{"little room for the log", up(disks(disk(plenty, -1), disk(1, -1))), "", SickDiskFull},
		{"little room, not running", up(down, disks(disk(1, -1))), "", SickDiskFull},
		{"little room, and it shows", up(disks(disk(1, -1)), trial(failedWith("53100", "", ""))), "", SickNoSpace},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := Diagnose(tc.s, tc.was)
			if got.Reason != tc.want || (got.Text == "") != (tc.want == "") || strings.Contains(got.Text, "%!") {
				t.Errorf("%q (%s), want %q", got.Reason, got.Text, tc.want)
			}
			if tc.want != "" && !slices.Contains(SickReasons, tc.want) {
				t.Errorf("%s is not among the reasons", tc.want)
			}
		})
	}
	if why := CannotTell(failedWith("53300", "", "sorry")); !strings.Contains(why, "no sickness") {
		t.Errorf("too many clients: %q", why)
	}
}

// TestCourse: neither one bad moment nor one good one changes what is told.
func TestCourse(t *testing.T) {
	const patience = 5 * time.Second
	full, well := Sickness{SickDiskFull, "full"}, Sickness{}
	at := func(s float64) time.Time { return time.Unix(1000, int64(s*1e9)) }
	type look struct {
		at, began float64
		found     Sickness
		told      string
	}
	for name, looks := range map[string][]look{
		"a bad moment":         {{0, 0, full, ""}, {4, 4, full, ""}, {4.5, 4.5, well, ""}, {5.5, 5.5, full, ""}, {10, 10, full, ""}},
		"sick":                 {{0, 0, full, ""}, {4.9, 4.9, full, ""}, {5, 5, full, SickDiskFull}},
		"one slow look":        {{9, 0, full, ""}, {9.1, 9.1, full, SickDiskFull}},
		"a slow cure":          {{0, 0, full, ""}, {5, 5, full, SickDiskFull}, {60, 0, well, SickDiskFull}, {61, 61, well, SickDiskFull}, {65, 65, well, ""}},
		"a cure takes as long": {{0, 0, full, ""}, {5, 5, full, SickDiskFull}, {6, 6, well, SickDiskFull}, {8, 8, full, SickDiskFull}, {9, 9, well, SickDiskFull}, {13, 13, well, SickDiskFull}, {14, 14, well, ""}},
	} {
		var c Course
		for i, l := range looks {
			if c = c.Look(l.found, at(l.began), at(l.at), patience); c.Now.Reason != l.told {
				t.Errorf("%s: look %d tells %q, want %q", name, i, c.Now.Reason, l.told)
			}
		}
	}
}

// ward is a group whose nodes fall sick and are cured, under the real state and the real decisions. Its clock is virtual.
type ward struct {
	*lab
	now   time.Time
	tried time.Time
	moves []time.Time // when it was taken from a sick primary
}

func (w *ward) ago(at time.Time) time.Duration {
	if at.IsZero() {
		return 0
	}
	return max(w.now.Sub(at), 1)
}

func (w *ward) view(recruits []Recruit) GroupView {
	g := w.group()
	v := GroupView{
		State: w.s, Group: g, Heard: map[fsm.NodeID]time.Duration{}, Leading: time.Hour, Recruits: recruits, SinceSick: w.ago(g.SickMoved), TriedSick: w.ago(w.tried),
		Ailed: map[fsm.NodeID]time.Duration{}, Changed: time.Hour,
	}
	for _, id := range w.ids {
		v.Heard[id] = 0
		if at := w.s.Nodes[id].Report.SickAt; !at.IsZero() {
			v.Ailed[id] = w.ago(at)
		}
	}
	if recruits != nil {
		v.Asking, v.Enough = time.Minute, time.Minute
	}
	return v
}

// at applies a command at the ward's time.
func (w *ward) at(c fsm.Command) {
	w.t.Helper()
	b, err := fsm.Encode(c, "", w.now)
	if err != nil {
		w.t.Fatal(err)
	}
	next, res := fsm.Apply(w.s, w.s.Index+1, b)
	if err := fsm.Invariant(w.s, next); err != nil || !res.OK {
		w.t.Fatalf("%v, %s after %s", err, res.Reason, b)
	}
	w.s = next
}

// report has every node say how it is.
func (w *ward) report(sick map[fsm.NodeID]string) {
	tick := fsm.Tick{Reports: map[fsm.NodeID]fsm.Report{}}
	for _, id := range w.ids {
		r := fsm.Report{State: "streaming", Epoch: w.group().Epoch, Sick: sick[id]}
		if w.streams[id] || id == w.holder() {
			tick.Reports[id] = r
			continue
		}
		r.State = "starting"
		tick.Reports[id] = r
	}
	w.at(tick)
}

// TestSickNeverFlaps: whoever falls sick whenever, a group is taken from sick primaries at most once in the cool-down, only while a
// standby that is well streams synchronously, and never goes to a node that is sick or was in the cool-down.
func TestSickNeverFlaps(t *testing.T) {
	handovers := 0
	rapid.Check(t, func(t *rapid.T) {
		w := &ward{lab: newLab(t), now: time.Unix(1e9, 0)}
		sick := map[fsm.NodeID]string{}
		cool := w.s.Cluster.Settings.Cooldown()
		for range 60 {
			w.now = w.now.Add(time.Duration(rapid.IntRange(1, 240).Draw(t, "seconds")) * time.Second)
			id := rapid.SampledFrom(w.ids).Draw(t, "node")
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				sick[id] = rapid.SampledFrom([]string{SickLogHangs, SickDiskFull}).Draw(t, "reason")
			case 1:
				delete(sick, id)
			case 2:
				w.streams[id] = id != w.holder()
			default:
				delete(w.streams, id)
			}
			w.settle()
			w.report(sick)
			p := Cluster(w.view(nil))
			switch a := p.Action.(type) {
			case RevokeLease:
				w.taken(t, cool, sick, p)
				w.at(fsm.Revoke{Epoch: a.Epoch, Reason: a.Reason, Early: a.Early, Sick: a.Sick})
				w.at(fsm.Release{Epoch: a.Epoch})
				w.elect(t, cool, sick)
				handovers++
			case BeginOperation:
				if w.tried = w.now; w.bool("refused") {
					break
				}
				w.taken(t, cool, sick, p)
				if why := Unfit(w.s, w.group(), w.s.Nodes[a.Operation.To], w.view(nil).Heard); why != "" || w.ailedIn(a.Operation.To, cool) {
					t.Fatalf("switches over to %s: %s", a.Operation.To, why)
				}
				w.at(fsm.SyncConfirm{Epoch: w.group().Epoch, Pair: w.group().Sync.Target()})
				w.at(fsm.OperationPut{Operation: a.Operation})
				for _, phase := range [][2]string{{fsm.Check, fsm.Pause}, {fsm.Pause, fsm.Demote}} {
					w.at(fsm.OperationMove{ID: a.Operation.ID, From: phase[0], To: phase[1]})
				}
				w.at(fsm.Release{Epoch: w.group().Epoch})
				w.grantTo(a.Operation.To)
				handovers++
			}
		}
	})
	if handovers == 0 {
		t.Error("no group was ever handed over: nothing was tested")
	}
}

// settle makes the synchronous set that of the standbys that stream, as the holder would.
func (w *ward) settle() {
	for range 2 * len(w.ids) {
		target := w.group().Sync.Target()
		next := slices.Clone(target.S)
		for _, id := range w.ids {
			switch in := slices.Contains(next, id); {
			case in && !w.streams[id]:
				next = without(next, id)
			case !in && w.streams[id]:
				next = append(next, id)
			default:
				continue
			}
			break
		}
		if p := fsm.NewPair(min(1, len(next)), next...); !p.Equal(target) {
			w.at(fsm.SyncPropose{Epoch: w.group().Epoch, Pair: p})
			w.at(fsm.SyncConfirm{Epoch: w.group().Epoch, Pair: p})
		}
	}
}

func (w *ward) ailedIn(id fsm.NodeID, d time.Duration) bool {
	at := w.s.Nodes[id].Report.SickAt
	return !at.IsZero() && w.now.Sub(at) < d
}

// taken judges a handover that is about to begin.
func (w *ward) taken(t *rapid.T, cool time.Duration, sick map[fsm.NodeID]string, p ClusterPlan) {
	g := w.group()
	if n := len(w.moves); n > 0 && w.now.Sub(w.moves[n-1]) < cool {
		t.Fatalf("%s again after %s", p.Rule, w.now.Sub(w.moves[n-1]))
	}
	w.moves = append(w.moves, w.now)
	if !slices.ContainsFunc(w.ids, func(id fsm.NodeID) bool {
		return g.Sync.Target().Has(id) && w.streams[id] && sick[id] == "" && !w.ailedIn(id, cool)
	}) {
		t.Fatalf("%s without a synchronous standby that is well: %s", p.Rule, p.Reason)
	}
}

// elect holds the election after a revocation: everybody answers, in any order of positions among the standbys.
func (w *ward) elect(t *rapid.T, cool time.Duration, sick map[fsm.NodeID]string) {
	var rs []Recruit
	for _, id := range w.ids {
		if !w.streams[id] {
			continue
		}
		r := Recruit{Node: id, Instance: "i", Timeline: fsm.Timeline(10 + w.group().Epoch.N), Lineage: w.group().Epoch, LSN: fsm.LSN(rapid.IntRange(100, 102).Draw(t, "lsn"))}
		if sick[id] != "" {
			r.Sick = "sick"
		}
		rs = append(rs, r)
	}
	p := Cluster(w.view(rs))
	grant, ok := p.Action.(GrantLease)
	if !ok {
		t.Fatalf("nobody is elected: %s %s", p.Rule, p.Reason)
	}
	if to := grant.To.Node; sick[to] != "" || w.ailedIn(to, cool) {
		t.Fatalf("%s is elected, and is or was sick: %s", to, fmt.Sprint(rs))
	}
	w.grantTo(grant.To.Node)
}

func (w *ward) grantTo(to fsm.NodeID) {
	w.grant(to, fsm.Pair{})
	w.at(fsm.SyncConfirm{Epoch: w.group().Epoch, Pair: w.group().Sync.Target()})
}
