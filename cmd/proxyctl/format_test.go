package main

import (
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/printable"
)

func TestSizesAreWrittenAsSystemdWritesThem(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0B", 1: "1B", 1023: "1023B", 1024: "1.0K", 1535: "1.4K", 1536: "1.5K", 1<<20 - 1: "1023.9K", 1 << 20: "1.0M",
		3 << 30: "3.0G", 1 << 40: "1.0T", 1 << 50: "1.0P", math.MaxUint64: "15.9E",
	} {
		if got := formatBytes(n); got != want {
			t.Errorf("formatBytes(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestSpansAreAsExactAsPeopleLike(t *testing.T) {
	for span, want := range map[time.Duration]string{
		0: "0", 1500 * time.Microsecond: "1ms", 1234567 * time.Microsecond: "1.234s", 90500 * time.Millisecond: "1min 30s",
		5*time.Hour + 59*time.Second: "5h", 26*time.Hour + time.Minute: "1d 2h", 500 * 24 * time.Hour: "1y 4month 1w 6d",
	} {
		if got := formatSpan(span); got != want {
			t.Errorf("formatSpan(%d) = %q, want %q", span, got, want)
		}
	}
	if got := formatAge(2900 * time.Millisecond); got != "2s" {
		t.Errorf("an age of 2.9 s is %q", got)
	}
}

// An int of a 32-bit machine would be negative.
func TestListShowsTheLargestCounts(t *testing.T) {
	const largest = math.MaxUint32
	table := (&ctl{}).listTable([]described{{
		&client.Instance{Name: "web"}, &client.Properties{NConnections: largest, ConnectionsMax: largest, ProcessID: largest},
	}}, nil)
	for i, column := range table.columns {
		if got := table.rows[0][i].text; column.right && got != "4294967295" {
			t.Errorf("%s is %q", column.header, got)
		}
	}
}

func TestTextIsShortenedInTheMiddleToColumns(t *testing.T) {
	for _, test := range []struct {
		text    string
		columns int
		utf8    bool
		want    string
	}{
		{"gruß", 4, true, "gruß"},
		{"grüße", 4, true, "gr…e"},
		{"grüße", 4, false, "g..."},
		{"[2001:db8:85a3:8d3:1319:8a2e:370:7348]:40113", 19, true, "[2001:db8…48]:40113"},
		{"日本語日本語", 12, true, "日本語日本語"},
		{"日本語日本語", 11, true, "日本…日本語"},
		{"日本語日本語", 6, true, "日…語"},
		{"e\u0301e\u0301e\u0301e\u0301", 4, true, "e\u0301e\u0301e\u0301e\u0301"},
		{"e\u0301e\u0301e\u0301e\u0301", 3, true, "e\u0301…e\u0301"},
		{"grüße", 1, true, "…"},
		{"", 0, true, ""},
	} {
		if got := (terminal{utf8: test.utf8}).ellipsize(test.text, test.columns); got != test.want {
			t.Errorf("%q in %d columns: %q, want %q", test.text, test.columns, got, test.want)
		}
	}
}

func TestWhatOthersChooseCannotMoveTheCursor(t *testing.T) {
	for text, want := range map[string]string{
		"web": "web", "grüße": "grüße", "\x1b[2J\n": `\x1b[2J\x0a`, "\xff": "\uFFFD", "\u009b31m": `\x9b31m`,
	} {
		if got := printable.Line(text); got != want {
			t.Errorf("printable.Line(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestTablesFitTheTerminalAndNothingElseGivesWay(t *testing.T) {
	row := []cell{{text: "open"}, {text: strings.Repeat("x", 40)}, {text: "123456789012"}}
	table := table{things: "x", columns: []column{{header: "STATE", fixed: true}, {header: "CLIENT"}, {header: "ID", right: true}}, rows: [][]cell{row}}
	for columns, want := range map[int]int{0: 59, 80: 59, 59: 59, 58: 58, 40: 40, 27: 27, 10: 27} {
		longest := 0
		for line := range strings.Lines(table.text(terminal{columns: columns, utf8: true}, true, false)) {
			longest = max(longest, width(strings.TrimSuffix(line, "\n")))
		}
		if longest != want {
			t.Errorf("in %d columns it is %d wide, want %d", columns, longest, want)
		}
	}
	if text := table.text(terminal{columns: 10}, true, true); !strings.Contains(text, row[1].text) {
		t.Errorf("--full does not show all:\n%s", text)
	}
}

func TestColumnsAreAlignedByWhatATerminalShows(t *testing.T) {
	table := table{things: "x", columns: []column{{header: "CLIENT"}, {header: "ID", right: true}}, rows: [][]cell{
		{{text: "日本"}, {text: "1"}}, {{text: "e\u0301e\u0301"}, {text: "22"}}, {{text: "\u202ex"}, {text: "3"}},
	}}
	want := "日本     1\ne\u0301e\u0301      22\n\\u202ex  3\n"
	if got := table.text(terminal{}, false, false); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestWhatIsTheSameInEveryLineGivesWayFirst(t *testing.T) {
	table := table{things: "x", columns: []column{{header: "CLIENT"}, {header: "BACKEND"}, {header: "UNIT", wide: true}}, rows: [][]cell{
		{{text: "[2001:db8::1]:40112"}, {text: "backend.example.org:3000"}, {text: "web.service"}},
		{{text: "[2001:db8::2]:40113"}, {text: "backend.example.org:3000"}, {text: "web.service"}},
	}}
	for columns, want := range map[int]string{
		56: "[2001:db8::1]:40112 backend.example.org:3000 web.service",
		55: "[2001:db8::1]:40112 backend.example.org:3000",
		35: "[2001:db8::1]:40112 backend…rg:3000",
		28: "[2001:db8::1]:40112 back…000",
		24: "[2001:d…]:40112 back…000",
	} {
		got, _, _ := strings.Cut(table.text(terminal{columns: columns, utf8: true}, false, false), "\n")
		if got != want {
			t.Errorf("in %d columns\ngot  %s\nwant %s", columns, got, want)
		}
	}
}

func TestColoursObeyTheEnvironment(t *testing.T) {
	for _, test := range []struct {
		systemd, no, term string
		isTerminal, want  bool
	}{
		{"", "", "xterm", true, true},
		{"", "", "xterm", false, false},
		{"", "1", "xterm", true, false},
		{"", "", "dumb", true, false},
		{"1", "1", "dumb", false, true},
		{"256", "", "xterm", false, true},
		{"0", "", "xterm", true, false},
		{"false", "", "xterm", true, false},
	} {
		t.Setenv("SYSTEMD_COLORS", test.systemd)
		t.Setenv("NO_COLOR", test.no)
		t.Setenv("TERM", test.term)
		if got := wantsColour(test.isTerminal); got != test.want {
			t.Errorf("%+v: %t", test, got)
		}
	}
}

func TestALocaleWithAModifierIsOneOfUTF8(t *testing.T) {
	t.Setenv("LC_CTYPE", "")
	t.Setenv("LANG", "")
	for locale, want := range map[string]bool{
		"": true, "C": false, "C.UTF-8": true, "de_DE.utf8": true, "de_DE@euro": false, "ca_ES.UTF-8@valencia": true, "sr_RS.utf8@latin": true,
	} {
		t.Setenv("LC_ALL", locale)
		if got := wantsUTF8(); got != want {
			t.Errorf("%q: %t", locale, got)
		}
	}
}

func TestThePagerIsThatOfSystemd(t *testing.T) {
	for _, test := range []struct{ systemd, pager, secure, want string }{
		{"-", "-", "0", "less"},
		{"-", "more", "0", "more"},
		{"most", "more", "0", "most"},
		{"", "more", "0", ""},
		{"most", "more", "1", "less"},
	} {
		for name, value := range map[string]string{"SYSTEMD_PAGER": test.systemd, "PAGER": test.pager} {
			t.Setenv(name, value) // for its end, too
			if value == "-" {
				os.Unsetenv(name)
			}
		}
		t.Setenv("SYSTEMD_PAGERSECURE", test.secure)
		if got := pager(pagesSecurely()); got != test.want {
			t.Errorf("%+v: %q", test, got)
		}
	}
}

func TestThePagerIsSecureUnlessTheCallerIsTheUserWhoLoggedIn(t *testing.T) {
	const session = "0::/user.slice/user-1000.slice/session-3.scope\n"
	changers := []string{"SUDO_UID", "DOAS_USER", "PKEXEC_UID"}
	for _, test := range []struct {
		cgroups string
		uid     int
		changer string
		owns    bool
	}{
		{session, 1000, "", true},
		{session, 0, "", false}, // su(1)
		{session, 100, "", false},
		{"0::/user.slice/user-0.slice/session-3.scope\n", 0, "", true},
		{"0::/user.slice/user-1000.slice/user@1000.service/app.slice/user-0.slice/x.scope\n", 0, "", false},
		{"0::/system.slice/user-0.service\n", 0, "", false},
		{"0::/\n", 0, "", false},
		{"", 0, "", false},
		{"4:memory:/user.slice/user-0.slice\n1:name=systemd:/user.slice/user-1000.slice/session-3.scope\n0::/\n", 1000, "", true},
		{session, 1000, "SUDO_UID", false},
		{session, 1000, "DOAS_USER", false},
		{session, 1000, "PKEXEC_UID", false},
	} {
		for _, changer := range changers {
			t.Setenv(changer, "")
		}
		if test.changer != "" {
			t.Setenv(test.changer, "1001")
		}
		if got := ownsSession(test.cgroups, test.uid); got != test.owns {
			t.Errorf("%+v: %t", test, got)
		}
	}
}

func TestThePagerGetsWhatTheTerminalHasNoRoomFor(t *testing.T) {
	environment(t)
	for _, test := range []struct {
		lines   int
		noPager bool
		pager   string
		want    string
	}{
		{2, false, "sed 's/^/paged: /'", "paged: a\npaged: b\n"},
		{3, false, "sed 's/^/paged: /'", "a\nb\n"},
		{2, true, "sed 's/^/paged: /'", "a\nb\n"},
		{2, false, "", "a\nb\n"},
		{2, false, "cat", "a\nb\n"},
		{2, false, "/nowhere 2>/dev/null", "a\nb\n"},
	} {
		t.Setenv("SYSTEMD_PAGER", test.pager)
		t.Setenv("SYSTEMD_PAGERSECURE", "0")
		out := newOutput()
		c := &ctl{stdout: out, stderr: out, terminal: terminal{isTerminal: true, lines: test.lines}, options: options{noPager: test.noPager}}
		if err := c.print("a\nb\n"); err != nil || out.String() != test.want {
			t.Errorf("%+v: %q, %v", test, out, err)
		}
	}
}

func TestNamesStandForInstances(t *testing.T) {
	instances := []*client.Instance{{Name: "db"}, {Name: "my-db"}, {Name: "proxyd@web"}, {Name: "web", Aliases: []string{"web-pid12"}}, {Name: "w?b"}}
	for name, want := range map[string]string{
		"web":                              "web",
		"web.service":                      "web",
		"web-pid12":                        "web",
		"org.example.SocketProxy1.web":     "web",
		"proxyd@web.service":               "proxyd@web",
		"org.example.SocketProxy1.my-db":   "my-db",
		"org.example.SocketProxy1.my_2ddb": "my-db",
		"org.example.SocketProxy1.w_3fb":   "w?b",
		"w?b":                              "w?b",
		"w*":                               "web, w?b",
		"*web.service":                     "proxyd@web, web",
		"[dw]?b":                           "web, w?b",
		"*":                                "db, my-db, proxyd@web, web, w?b",
		"d":                                "",
		"":                                 "",
		"[":                                "",
		"org.example.SocketProxy1":         "",
		"org.example.SocketProxy1.nobody":  "",
	} {
		if got := namesOf(matching(instances, name)); got != want {
			t.Errorf("%q stands for %q, want %q", name, got, want)
		}
	}
}

func TestHelpFitsATerminalAndNamesEveryVerb(t *testing.T) {
	root := new(ctl).command()
	text := help(root)
	for line := range strings.Lines(text) {
		if n := width(strings.TrimSuffix(line, "\n")); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	for _, command := range root.Commands() {
		if command.ValidArgsFunction == nil && !slices.Equal(command.ValidArgs, []string{"bash", "zsh", "fish"}) {
			t.Errorf("%s completes nothing", command.Name())
		}
	}
}
