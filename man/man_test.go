// Package man_test holds the manual pages against the programs they describe.
package man_test

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"example.org/socketproxy/internal/testenv"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// An option as --help and the pages show it, such as --connections-max=N.
var option = regexp.MustCompile(`--[a-z][a-z-]*(=[^\s,]+)?`)

func TestProxydHelpAndPageHaveTheSameOptions(t *testing.T) {
	help, err := exec.Command("go", "run", "../cmd/proxyd", "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	var inHelp []string
	for line := range strings.Lines(string(help)) {
		if text := strings.TrimSpace(line); strings.HasPrefix(text, "-") {
			inHelp = append(inHelp, option.FindString(text))
		}
	}
	inPage := optionsOf(t, "proxyd.8")
	slices.Sort(inHelp)
	slices.Sort(inPage)
	if !slices.Equal(inHelp, inPage) {
		t.Errorf("--help has %q\nthe page %q", inHelp, inPage)
	}
}

// optionsOf finds the options that are tags of paragraphs in the section OPTIONS.
func optionsOf(t *testing.T, page string) (options []string) {
	t.Helper()
	source, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(source), "\n.SH OPTIONS\n")
	section, _, _ = strings.Cut(section, "\n.SH ")
	plain := strings.NewReplacer(`\-`, "-", `\fB`, "", `\fI`, "", `\fR`, "").Replace(section)
	for _, paragraph := range strings.Split(plain, "\n.TP\n")[1:] {
		tag, _, _ := strings.Cut(paragraph, "\n")
		options = append(options, option.FindString(tag))
	}
	return options
}

func TestProxyctlCompletesTheVerbsAndOptionsOfItsPageAndThePropertiesOfTheXML(t *testing.T) {
	proxyctl := filepath.Join(t.TempDir(), "proxyctl")
	if text, err := exec.Command("go", "build", "-o", proxyctl, "../cmd/proxyctl").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	complete := func(words ...string) []string {
		t.Helper()
		text, err := exec.Command(proxyctl, append([]string{"__complete"}, words...)...).Output()
		if err != nil {
			t.Fatalf("completion of %q: %v", words, err)
		}
		return found(`(?m)^([\w-]+)`, string(text))
	}
	page := read(t, "proxyctl.1")

	verbs := complete("")
	var inPage []string
	for _, verb := range outerTags(section(t, page, "COMMANDS")) {
		if verb, _, _ = strings.Cut(verb, " "); verb != "completion" { // which is for the set-up of a shell
			inPage = append(inPage, verb)
		}
	}
	sameInAnyOrder(t, "verbs", verbs, inPage)

	options := map[string]bool{}
	for _, verb := range verbs {
		for _, option := range complete(verb, "--") {
			options[option] = true
		}
	}
	documented := map[string]bool{}
	for _, p := range paragraphs(page) {
		for _, option := range found(`^(?:-\w, )?(--[a-z-]+)`, p.tag) {
			documented[option] = true
		}
	}
	sameInAnyOrder(t, "options", slices.Collect(maps.Keys(options)), slices.Collect(maps.Keys(documented)))

	var inXML []string
	for _, property := range parseInterface(t).Interface.Properties {
		inXML = append(inXML, property.Name)
	}
	if properties := complete("show", "--property", ""); !slices.Equal(properties, inXML) {
		t.Errorf("it completes the properties %q, the XML has %q", properties, inXML)
	}
}

func TestPagesAreFreeOfMistakes(t *testing.T) {
	testenv.Need(t, "man", "man-db")
	pages, err := filepath.Glob("*.[1-8]")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		man := exec.Command("man", "--warnings", "-l", page)
		man.Env = append(os.Environ(), "MANPAGER=cat", "MANWIDTH=80", "LC_ALL=C.UTF-8")
		var warnings strings.Builder
		man.Stderr = &warnings
		if err := man.Run(); err != nil || warnings.Len() > 0 {
			t.Errorf("%s: %v\n%s", page, err, &warnings)
		}
	}
}
