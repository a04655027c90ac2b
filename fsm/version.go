package fsm

// tlsVersion is the first version that knows Settings.PostgresTLS.
const tlsVersion = 2

// Needs is the lowest version that understands a command with this content. It is what the log says, so that a binary without it stops
// with a sentence instead of dropping a field that it does not know.
func Needs(c Command) int {
	var set Settings
	switch c := c.(type) {
	case Bootstrap:
		set = c.Settings
	case SettingsPut:
		set = c.Settings
	}
	return set.needs()
}

func (s Settings) needs() int {
	if s.PostgresTLS.Or() != LinksOff {
		return tlsVersion
	}
	return 1
}

// Gated refuses a command that some node's binary does not know: it would stop that node.
func (s *State) Gated(c Command) Result {
	need := Needs(c)
	for _, id := range s.NodeIDs() {
		if n := s.Nodes[id]; n.Protocol < need {
			return refuse("%s runs matriarch %s, which does not know this: upgrade it first (command version %d, this needs %d)", n.Name, orUnknown(n.Version), n.Protocol, need)
		}
	}
	return done
}

func orUnknown(version string) string {
	if version == "" {
		return "(version unknown)"
	}
	return version
}
