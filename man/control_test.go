package man_test

import (
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"example.org/socketproxy/internal/metrics"
	"example.org/socketproxy/internal/testenv"
)

const interfaceFile = "../internal/bus/org.example.SocketProxy1.xml"

func TestProxyctlHelpAndPageHaveTheSameVerbsOptionsAndExitStatuses(t *testing.T) {
	output, err := exec.Command("go", "run", "../cmd/proxyctl", "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	help, page := string(output), read(t, "proxyctl.1")

	_, verbs, _ := strings.Cut(help, "\nVerbs:\n")
	verbs, _, _ = strings.Cut(verbs, "\nOptions:\n")
	inHelp := found(`(?m)^  (\S+(?: \S+)*)`, verbs)
	inHelp = append(inHelp, "completion bash|zsh|fish", "help") // which --help keeps to itself
	sameInAnyOrder(t, "verbs", inHelp, outerTags(section(t, page, "COMMANDS")))

	inHelp = nil
	for _, option := range found(`(?m)^ +(-\S+(?: --\S+)?)`, help) {
		inHelp = append(inHelp, strings.Replace(option, " ", ", ", 1))
	}
	var inPage []string
	for _, p := range paragraphs(page) {
		if strings.HasPrefix(p.tag, "-") {
			inPage = append(inPage, p.tag)
		}
	}
	sameInAnyOrder(t, "options", inHelp, inPage)

	_, statuses, _ := strings.Cut(help, "\nExit status:\n")
	same(t, "exit statuses", found(`(?m)^  (\d+)`, statuses), outerTags(section(t, page, "EXIT STATUS")))
}

// element is one of the interface's document.
type element struct {
	Name       string    `xml:"name,attr"`
	Type       string    `xml:"type,attr"`
	Direction  string    `xml:"direction,attr"`
	Access     string    `xml:"access,attr"`
	Value      string    `xml:"value,attr"`
	Annotation []element `xml:"annotation"`
	Args       []element `xml:"arg"`
	Methods    []element `xml:"method"`
	Signals    []element `xml:"signal"`
	Properties []element `xml:"property"`
	Interface  *element  `xml:"interface"`
}

func parseInterface(t *testing.T) (node element) {
	t.Helper()
	if err := xml.Unmarshal([]byte(read(t, interfaceFile)), &node); err != nil {
		t.Fatal(err)
	}
	return node
}

func TestInterfaceOnItsPageIsThatOfTheXML(t *testing.T) {
	want := printed(parseInterface(t))
	object := section(t, read(t, "org.example.SocketProxy1.5"), "THE OBJECT")
	_, got, _ := strings.Cut(object, ".EX\n")
	got, _, _ = strings.Cut(got, ".EE\n")
	if got = plain(got); got != want {
		t.Errorf("the page has\n%s\nthe XML\n%s", got, want)
	}
}

// printed is an object as the manual pages of systemd print one.
func printed(node element) string {
	var text strings.Builder
	member := func(m element) {
		fmt.Fprintf(&text, "      %s(", m.Name)
		for i, arg := range m.Args {
			if i > 0 {
				text.WriteString(",\n       " + strings.Repeat(" ", len(m.Name)))
			}
			if arg.Direction != "" {
				fmt.Fprintf(&text, "%-4s", arg.Direction)
			}
			text.WriteString(arg.Type + " " + arg.Name)
		}
		text.WriteString(");\n")
	}
	fmt.Fprintf(&text, "node %s {\n  interface %s {\n    methods:\n", node.Name, node.Interface.Name)
	for _, method := range node.Interface.Methods {
		member(method)
	}
	text.WriteString("    signals:\n")
	for _, signal := range node.Interface.Signals {
		member(signal)
	}
	text.WriteString("    properties:\n")
	for _, p := range node.Interface.Properties {
		for _, a := range p.Annotation {
			if a.Value != "true" {
				fmt.Fprintf(&text, "      @%s(%q)\n", a.Name, a.Value)
			}
		}
		access := map[string]string{"read": "readonly", "readwrite": "readwrite"}[p.Access]
		value := map[string]string{"s": "'...'", "as": "['...', ...]", "a{st}": "{...}", "a(tt)": "[...]"}[p.Type]
		if value == "" {
			value = "..."
		}
		fmt.Fprintf(&text, "      %s %s %s = %s;\n", access, p.Type, p.Name, value)
	}
	text.WriteString("  };\n")
	for _, standard := range []string{"Introspectable", "Peer", "Properties"} {
		fmt.Fprintf(&text, "  interface org.freedesktop.DBus.%s { ... };\n", standard)
	}
	return text.String() + "};\n"
}

func TestEveryMemberOfTheInterfaceIsExplained(t *testing.T) {
	page := read(t, "org.example.SocketProxy1.5")
	node := parseInterface(t)
	for _, kind := range []struct {
		heading, suffix string
		members         []element
	}{
		{"Methods", "()", node.Interface.Methods},
		{"Signals", "", node.Interface.Signals},
		{"Properties", "", node.Interface.Properties},
	} {
		var want []string
		for _, member := range kind.members {
			want = append(want, member.Name+kind.suffix)
		}
		same(t, kind.heading, want, outerTags(section(t, page, kind.heading)))
	}
}

func TestMembersNeedTheSameActionsOnThePageAsInTheXML(t *testing.T) {
	const action = `(org\.example\.SocketProxy1\.[a-z]+)`
	onPage := map[string][]string{}
	for _, p := range paragraphs(section(t, read(t, "org.example.SocketProxy1.5"), "THE OBJECT")) {
		onPage[strings.TrimSuffix(p.tag, "()")] = found(action, p.text)
	}
	comments := regexp.MustCompile(`(?s)<!--\s+(\w+):(.*?)-->\s*<(?:method|property) `).FindAllStringSubmatch(read(t, interfaceFile), -1)
	if len(comments) == 0 {
		t.Fatal("no comments in the XML")
	}
	for _, comment := range comments {
		if want := found(action, comment[2]); want != nil { // else it has another member do it
			same(t, "actions of "+comment[1], want, onPage[comment[1]])
		}
	}
}

func TestErrorsOnThePageAreThoseOfTheCode(t *testing.T) {
	code := read(t, "../internal/bus/api/errors.go")
	want := found(`= "(org\.freedesktop\.DBus\.Error\.\w+)"`, code)
	for _, own := range found(`= ErrorPrefix \+ "(\w+)"`, code) {
		want = append(want, "org.example.SocketProxy1.Error."+own)
	}
	sameInAnyOrder(t, "errors", want, outerTags(section(t, read(t, "org.example.SocketProxy1.5"), "ERRORS")))
}

func TestActionsOnThePagesAreThoseOfThePolicy(t *testing.T) {
	var policy struct {
		Actions []struct {
			ID       string   `xml:"id,attr"`
			Defaults []string `xml:"defaults>allow_any"`
			Inactive []string `xml:"defaults>allow_inactive"`
			Active   []string `xml:"defaults>allow_active"`
		} `xml:"action"`
	}
	if err := xml.Unmarshal([]byte(read(t, "../dbus-policy/org.example.SocketProxy1.policy")), &policy); err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, action := range policy.Actions {
		want = append(want, action.ID)
		for _, defaults := range slices.Concat(action.Defaults, action.Inactive, action.Active) {
			if defaults != "auth_admin_keep" {
				t.Errorf("the default of %s is %s, and the pages say another", action.ID, defaults)
			}
		}
	}
	for _, page := range []string{"proxyctl.1", "org.example.SocketProxy1.5"} {
		same(t, "actions in "+page, want, outerTags(section(t, read(t, page), "AUTHORIZATION")))
	}
}

func TestBoundsOnThePageAreThoseOfTheCode(t *testing.T) {
	code := read(t, "../internal/bus/pace.go") + read(t, "../internal/bus/authority.go")
	page := strings.Join(strings.Fields(plain(read(t, "org.example.SocketProxy1.5"))), " ")
	for constant, sentence := range map[string]string{
		"pageMax":               "A page holds %s connections at most",
		"subscribersMax":        "Root may have %s subscribers",
		"looksPerCall":          "%s connections that a filter has looked at",
		"subscribersPerUserMax": "as many, %s of each user",
		"signalQueueMax":        "%s signals wait",
		"signalRate":            "%s signals a second at most",
		"signalBurst":           "after a burst of %s. ",
		"callsPerUserMax":       "%s calls of each user are served at once",
		"callsPerCallerMax":     "%s of each caller",
		"askRate":               "asks the bus about %s new callers a second at most",
		"questionsMax":          "Of calls that wait for polkit there may be %s for each user.",
		"workRate":              "For each user %s calls a second are served",
		"rootWorkRate":          "for root %s, after a burst",
		"workBurst":             "after a burst of %s.",
		"rowsPerCall":           "%s connections in an answer count as one call more",
		"auditBurst":            "after a burst of %s; the next line",
		"textMax":               "may have %s bytes",
	} {
		value := found(`(?m)^\s*`+constant+`\s*= (\d+)`, code)
		if len(value) != 1 {
			t.Errorf("no constant %s in the code", constant)
		} else if want := fmt.Sprintf(sentence, value[0]); !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// found returns the first group of every match.
func found(pattern, text string) (groups []string) {
	for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		groups = append(groups, match[1])
	}
	return groups
}

func same(t *testing.T, what string, want, got []string) {
	t.Helper()
	if len(want) == 0 || !slices.Equal(want, got) {
		t.Errorf("%s: the program has %q\nthe page %q", what, want, got)
	}
}

func sameInAnyOrder(t *testing.T, what string, want, got []string) {
	t.Helper()
	same(t, what, slices.Sorted(slices.Values(want)), slices.Sorted(slices.Values(got)))
}

// section returns the source under a heading, up to the next one of its rank or above.
func section(t *testing.T, page, heading string) string {
	t.Helper()
	for _, rank := range []struct{ macro, end string }{{".SH ", `(?m)^\.SH `}, {".SS ", `(?m)^\.S[HS] `}} {
		for _, line := range []string{rank.macro + heading, rank.macro + `"` + heading + `"`} {
			if _, rest, ok := strings.Cut(page, "\n"+line+"\n"); ok {
				return regexp.MustCompile(rank.end).Split(rest, 2)[0]
			}
		}
	}
	t.Fatalf("no heading %s", heading)
	return ""
}

// paragraph is one with a tag, as .TP makes it, and as .TQ adds one.
type paragraph struct {
	tag, text string
	depth     int // of the .RS around it
}

func paragraphs(source string) (all []paragraph) {
	depth, isTag := 0, false
	for line := range strings.Lines(source) {
		macro, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case macro == ".TP", macro == ".TQ":
			isTag = true
		case isTag:
			all = append(all, paragraph{tag: strings.TrimSpace(plain(line)), depth: depth})
			isTag = false
		case macro == ".RS":
			depth++
		case macro == ".RE":
			depth--
		case len(all) > 0:
			all[len(all)-1].text += plain(line)
		}
	}
	return all
}

// outerTags are those of paragraphs that are in no other; a tag may name several things.
func outerTags(source string) (tags []string) {
	for _, p := range paragraphs(source) {
		if p.depth == 0 {
			tags = append(tags, strings.Split(p.tag, ", ")...)
		}
	}
	return tags
}

var (
	// fonts are the macros that print their arguments; those of two letters do so without a blank between them.
	fonts   = regexp.MustCompile(`^\.(B|I|BR|BI|RB|RI|IR|IB) `)
	words   = regexp.MustCompile(`"[^"]*"|\S+`)
	escapes = strings.NewReplacer(`\-`, "-", `\(aq`, "'", `\e`, `\`, `\fB`, "", `\fI`, "", `\fR`, "")
)

// plain takes the fonts out of source.
func plain(source string) string {
	var text strings.Builder
	for line := range strings.Lines(source) {
		if macro := fonts.FindString(line); macro != "" {
			between := strings.Repeat(" ", len(".BR ")-len(macro))
			var unquoted []string
			for _, word := range words.FindAllString(line[len(macro):], -1) {
				unquoted = append(unquoted, strings.Trim(word, `"`))
			}
			line = strings.Join(unquoted, between) + "\n"
		}
		text.WriteString(escapes.Replace(line))
	}
	return text.String()
}

func TestExporterHelpAndPageHaveTheSameOptions(t *testing.T) {
	help, err := exec.Command("go", "run", "../cmd/proxyd_exporter", "--help").Output()
	testenv.Must(t, err)
	page := section(t, read(t, "proxyd_exporter.8"), "OPTIONS")
	sameInAnyOrder(t, "options", found(`(?m)^ .*(--[a-z][a-z.-]*)`, string(help)), found(`(?m)^.*(--[a-z][a-z.-]*)`, strings.Join(outerTags(page), "\n")))
}

func TestMetricsOnThePageAreThoseOfTheTable(t *testing.T) {
	page := section(t, read(t, "proxyd_exporter.8"), "METRICS")
	var want, got []string
	for _, m := range metrics.All {
		tag := m.Name
		if m.Label != "" {
			tag += "{" + m.Label + "}"
		}
		want = append(want, tag+" ("+string(m.Kind)+"): "+m.Help)
	}
	for _, p := range paragraphs(page) {
		if p.tag != "" {
			text, _, _ := strings.Cut(p.text, "\n.PP")
			got = append(got, p.tag+": "+strings.Join(strings.Fields(text), " "))
		}
	}
	same(t, "metrics", want, got)
}
