package bus

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/bus/wire"
	"example.org/socketproxy/internal/bustest"
	"example.org/socketproxy/internal/forward"
	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/testenv"
	"github.com/godbus/dbus/v5"
)

// node is what introspection returns: D-Bus specification, "Introspection Data Format".
type node struct {
	Name       string             `xml:"name,attr"`
	Interfaces []interfaceElement `xml:"interface"`
	Children   []node             `xml:"node"`
}

type interfaceElement struct {
	Name       string            `xml:"name,attr"`
	Methods    []memberElement   `xml:"method"`
	Signals    []memberElement   `xml:"signal"`
	Properties []propertyElement `xml:"property"`
}

type memberElement struct {
	Name string `xml:"name,attr"`
	Args []struct {
		Name      string `xml:"name,attr"`
		Type      string `xml:"type,attr"`
		Direction string `xml:"direction,attr"`
	} `xml:"arg"`
}

type propertyElement struct {
	Name        string `xml:"name,attr"`
	Type        string `xml:"type,attr"`
	Access      string `xml:"access,attr"`
	Annotations []struct {
		Name  string `xml:"name,attr"`
		Value string `xml:"value,attr"`
	} `xml:"annotation"`
}

// signature of the arguments that go one way; those of signals go none.
func (m memberElement) signature(direction string) (s string) {
	for _, arg := range m.Args {
		if arg.Direction == direction {
			s += arg.Type
		}
	}
	return s
}

func (p propertyElement) emits() string {
	for _, a := range p.Annotations {
		if a.Name == "org.freedesktop.DBus.Property.EmitsChangedSignal" {
			return a.Value
		}
	}
	return ""
}

func parseXML(t *testing.T, document string) (n node) {
	t.Helper()
	testenv.Must(t, xml.Unmarshal([]byte(document), &n))
	return n
}

// documented is the interface as its XML has it.
func documented(t *testing.T) interfaceElement {
	t.Helper()
	return parseXML(t, interfaceXML).Interfaces[0]
}

func TestTheTablesHaveWhatTheXMLHas(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name       string
		xml        interfaceElement
		methods    map[string]method
		properties map[string]property
	}{
		{"ours", documented(t), methods, properties},
		{"log", parseXML(t, "<node>"+logControlXML+"</node>").Interfaces[0], nil, logProperties},
		{"properties", parseXML(t, "<node>"+propertiesXML+"</node>").Interfaces[0], propertyMethods(nil), nil},
		{"peer", parseXML(t, "<node>"+peerXML+"</node>").Interfaces[0], peerMethods, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			inXML := map[string]string{}
			for _, m := range test.xml.Methods {
				inXML[m.Name] = m.signature("in")
			}
			inTable := map[string]string{}
			for name, m := range test.methods {
				inTable[name] = m.in
			}
			if !maps.Equal(inXML, inTable) {
				t.Errorf("methods in the XML: %v\nmethods served:     %v", inXML, inTable)
			}
			for _, p := range test.xml.Properties {
				served, ok := test.properties[p.Name]
				if !ok {
					t.Errorf("property %s is not served", p.Name)
					continue
				}
				testenv.Equal(t, p.Name+" is of type", served.signature, p.Type)
				testenv.Equal(t, p.Name+" is writable", served.prepare != nil, p.Access == "readwrite")
				testenv.Equal(t, p.Name+" tells of changes", served.emits, p.emits() == "true")
				if !slices.Contains([]string{"const", "true", "false"}, p.emits()) || p.Access != "read" && p.Access != "readwrite" {
					t.Errorf("property %s: access %q, EmitsChangedSignal %q", p.Name, p.Access, p.emits())
				}
			}
			testenv.Equal(t, "properties served", len(test.properties), len(test.xml.Properties))
		})
	}
}

func TestEveryMemberIsDocumentedWithItsArguments(t *testing.T) {
	t.Parallel()
	decoder := xml.NewDecoder(strings.NewReader(interfaceXML))
	comment := ""
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		testenv.Must(t, err)
		switch token := token.(type) {
		case xml.Comment:
			comment = string(token)
		case xml.StartElement:
			attr := map[string]string{}
			for _, a := range token.Attr {
				attr[a.Name.Local] = a.Value
			}
			switch token.Name.Local {
			case "interface", "method", "signal", "property":
				text, ok := strings.CutPrefix(strings.TrimSpace(comment), attr["name"]+":")
				if !ok || strings.TrimSpace(text) == "" {
					t.Errorf("%s %s has no comment of its own", token.Name.Local, attr["name"])
				}
			case "arg":
				if !strings.Contains(comment, "@"+attr["name"]+": ") {
					t.Errorf("argument %s is missing from this comment:%s", attr["name"], comment)
				}
			}
		}
	}
}

func TestIntrospectionWalksFromTheRootToEveryObject(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	conn := r.daemon.ConnectAs(t, bustest.Nobody)
	found := map[string][]string{}
	var walk func(path string)
	walk = func(path string) {
		var text string
		testenv.Must(t, do(t, conn, bustest.Call{Path: path, Iface: "org.freedesktop.DBus.Introspectable", Member: "Introspect"}).Store(&text))
		n := parseXML(t, text)
		found[path] = []string{}
		for _, iface := range n.Interfaces {
			found[path] = append(found[path], iface.Name)
		}
		if path == api.Path && !strings.Contains(text, interfaceOf(interfaceXML)) {
			t.Errorf("introspection does not return the interface of the XML file, but\n%s", text)
		}
		for _, child := range n.Children {
			walk(strings.TrimSuffix(path, "/") + "/" + child.Name)
		}
	}
	walk("/")
	standard := []string{"org.freedesktop.DBus.Introspectable", "org.freedesktop.DBus.Peer"}
	withProperties := append(slices.Clone(standard), api.PropertiesInterface)
	want := map[string][]string{
		"/": standard, "/org": standard, "/org/example": standard, "/org/freedesktop": standard,
		api.Path:       append(slices.Clone(withProperties), api.Interface),
		logControlPath: append(slices.Clone(withProperties), logControlInterface),
	}
	for path := range want {
		slices.Sort(want[path])
	}
	if fmt.Sprint(found) != fmt.Sprint(want) {
		t.Errorf("found %v\nwant  %v", found, want)
	}
}

func TestWithoutALogControlThereIsNone(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(s *Server) { s.LogControl = nil; s.objects = s.exports() })
	err := do(t, r.daemon.Connect(t), bustest.Call{
		Path: logControlPath, Iface: api.PropertiesInterface, Member: "GetAll", Args: []any{logControlInterface},
	}).Err
	testenv.Equal(t, "error", nameOf(err), api.ErrorUnknownObject)
}

// recorder notes the signature of every message that a connection receives, by what it is.
type recorder struct {
	mu         sync.Mutex
	signatures map[string]string // of signals by member, and of replies by "reply"
}

func (r *recorder) note(msg *dbus.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	what := wire.Header[string](msg, dbus.FieldMember)
	if msg.Type == dbus.TypeMethodReply {
		what = "reply"
	}
	r.signatures[what] = wire.Header[dbus.Signature](msg, dbus.FieldSignature).String()
}

func (r *recorder) of(what string) (signature string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	signature, ok = r.signatures[what]
	return signature, ok
}

// What is sent is of the types that the XML says, for every method and every signal.
func TestRepliesAndSignalsAreOfTheDocumentedTypes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	seen := &recorder{signatures: map[string]string{}}
	conn, err := dbus.Connect(r.daemon.Address(), dbus.WithIncomingInterceptor(seen.note))
	testenv.Must(t, err)
	t.Cleanup(func() { conn.Close() })

	all := map[string]dbus.Variant{}
	second := uint64(0)
	calls := []struct {
		member string
		args   func() []any
	}{
		{"Subscribe", nil},
		{"ListConnections", func() []any {
			r.dial("tcp")
			r.dial("tcp")
			return []any{all, uint64(0), uint32(0)}
		}},
		{"GetConnection", func() []any {
			found := r.Connections(0, 0, nil)
			second = found[1].ID
			return []any{found[0].ID}
		}},
		{"CloseConnection", func() []any { return []any{second} }},
		{"CloseConnections", func() []any { return []any{all} }},
		{"SetConnectionsMax", func() []any { return []any{uint32(10)} }},
		{"SetExitIdleTime", func() []any { return []any{uint64(1e12)} }},
		{"Drain", func() []any { return []any{uint64(0), uint32(api.DrainRefuse)} }},
		{"Resume", func() []any {
			if c, err := net.Dial("tcp", r.tcp); err == nil { // else it was refused before it knew that it was connected
				defer c.Close()
			}
			proctest.Eventually(t, "a signal of the refusal", func() bool { _, ok := seen.of("ConnectionRefused"); return ok })
			return nil
		}},
		{"Unsubscribe", nil},
		{"Exit", nil},
	}
	returns := map[string]string{}
	for _, m := range documented(t).Methods {
		returns[m.Name] = m.signature("out")
	}
	for _, call := range calls {
		var args []any
		if call.args != nil {
			args = call.args()
		}
		testenv.Must(t, ask(t, conn, call.member, args...).Err)
		got, _ := seen.of("reply")
		testenv.Equal(t, call.member+"() returns", got, returns[call.member])
		delete(returns, call.member)
	}
	for name := range returns {
		t.Errorf("%s() is left out of this test", name)
	}
	for _, s := range documented(t).Signals {
		if s.Name == "SignalsLost" { // TestSignalsThatAreLostAreToldWhereTheyAreMissing
			continue
		}
		proctest.Eventually(t, "signal "+s.Name, func() bool { _, ok := seen.of(s.Name); return ok })
		got, _ := seen.of(s.Name)
		testenv.Equal(t, "signal "+s.Name, got, s.signature(""))
	}
}

func TestPropertiesAreOfTheDocumentedTypes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	conn := r.daemon.ConnectAs(t, bustest.Nobody)
	values := allProperties(t, conn)
	for _, p := range documented(t).Properties {
		value, ok := values[p.Name]
		if !ok {
			t.Errorf("GetAll leaves %s out", p.Name)
		}
		testenv.Equal(t, p.Name+" in GetAll is of type", value.Signature().String(), p.Type)
		var one dbus.Variant
		testenv.Must(t, do(t, conn, bustest.Call{Iface: api.PropertiesInterface, Member: "Get", Args: []any{api.Interface, p.Name}}).Store(&one))
		testenv.Equal(t, p.Name+" in Get", fmt.Sprint(one.Value()), fmt.Sprint(value.Value()))
		delete(values, p.Name)
	}
	for name := range values {
		t.Errorf("property %s is in no document", name)
	}
}

func TestPropertiesHaveTheirValues(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(s *Server) {
		s.Instance, s.Unit = "w\xffeb", "web.service"
		s.Options = api.Options{ConnectTimeoutUSec: 7e6, ProxyProtocol: "v2"}
		s.objects = s.exports()
	})
	conn := r.daemon.ConnectAs(t, bustest.Nobody)
	r.dial("tcp")
	echoes(t, r.dial("unix"))
	testenv.Must(t, r.SetConnectionsMax(7))
	var values map[string]dbus.Variant
	testenv.Must(t, do(t, conn, bustest.Call{
		To: api.BaseName, Iface: api.PropertiesInterface, Member: "GetAll", Args: []any{api.Interface},
	}).Store(&values))
	for name, want := range map[string]any{
		"Name":             "w\uFFFDeb",
		"Unit":             "web.service",
		"Version":          "1.2",
		"Target":           r.Target().String(),
		"ListenAddresses":  []string{r.tcp, r.unix},
		"ProcessID":        uint32(os.Getpid()),
		"State":            "running",
		"ConnectionsMax":   uint32(7),
		"ExitIdleTimeUSec": ^uint64(0),
		"NConnections":     uint32(2),
		"DrainDeadline":    uint64(0),
		"NAccepted":        uint64(2),
		"NRefused":         uint64(0),
		"NFailed":          uint64(0),
		"BytesToBackend":   uint64(3),
		"BytesToClient":    uint64(3),

		"NConnectionsPeak": uint32(2),
		"NConnectionsRoom": uint32(r.Room()),
		"NHalfClosed":      uint32(0),
		"NBacklog":         uint32(0),

		"BackendState":              "reachable",
		"NConnecting":               uint32(0),
		"BackendLastError":          "",
		"BackendLastErrorTimestamp": uint64(0),

		"ConnectTimeoutUSec": uint64(7e6),
		"ProxyProtocol":      "v2",
	} {
		testenv.Equal(t, name, values[name].String(), dbus.MakeVariant(want).String())
	}
	started := values["StartTimestamp"].Value().(uint64)
	testenv.Equal(t, "StartTimestamp", started, uint64(r.Started().UnixMicro()))
	reached, now := values["BackendLastReachedTimestamp"].Value().(uint64), uint64(time.Now().UnixMicro())
	if took := values["BackendLastConnectUSec"].Value().(uint64); reached < started || reached > now || took > reached-started {
		t.Errorf("the backend was reached at %d, after %d µs; the proxy started at %d, and now is %d", reached, took, started, now)
	}

	uptime, err := os.ReadFile("/proc/uptime") // in CLOCK_BOOTTIME, which is CLOCK_MONOTONIC where nobody suspends
	testenv.Must(t, err)
	var seconds float64
	_, err = fmt.Sscan(string(uptime), &seconds)
	testenv.Must(t, err)
	ago := time.Duration(seconds*1e9) - time.Duration(values["StartTimestampMonotonic"].Value().(uint64))*time.Microsecond
	if off := ago - time.Since(r.Started()); off.Abs() > time.Second {
		t.Errorf("StartTimestampMonotonic is off by %v", off)
	}
}

func TestPropertiesSayWhyConnectionsEnded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	echoes(t, r.dial("unix"))
	testenv.Equal(t, "killed", r.CloseConnections(nil), 1)
	values := allProperties(t, r.daemon.ConnectAs(t, bustest.Nobody))
	for name, want := range map[string]any{
		"EndReasons":      byWord(r.Breakdown().Ends),
		"RefusalReasons":  byWord(r.Breakdown().Refusals),
		"FailureReasons":  byWord(r.Breakdown().Failures),
		"DurationSumUSec": uint64(r.Breakdown().Duration.Sum.Microseconds()),
	} {
		testenv.Equal(t, name, fmt.Sprint(values[name].Value()), fmt.Sprint(want))
	}
	ends := values["EndReasons"].Value().(map[string]uint64)
	testenv.Equal(t, "killed", ends["killed"], 1)
	testenv.Equal(t, "finished", ends["finished"], 0)
	var histogram []api.Bucket
	testenv.Must(t, dbus.Store([]any{values["DurationHistogram"].Value()}, &histogram))
	testenv.Equal(t, "durations", fmt.Sprint(histogram), fmt.Sprint(buckets(r.Breakdown().Duration)))
	testenv.Equal(t, "the last bucket", histogram[len(histogram)-1], api.Bucket{LimitUSec: math.MaxUint64, Count: 1})
}

func TestEveryMethodNeedsAnActionOfThePolicyFile(t *testing.T) {
	t.Parallel()
	policy, err := os.ReadFile("../../dbus-policy/org.example.SocketProxy1.policy")
	testenv.Must(t, err)
	var inPolicy []string
	for _, match := range regexp.MustCompile(`<action id="([^"]*)">`).FindAllStringSubmatch(string(policy), -1) {
		inPolicy = append(inPolicy, match[1])
	}
	asked := map[string]bool{actionExit: true} // Drain asks for it too
	for name, m := range methods {
		if (m.action == actionNone) != (name == "Unsubscribe") {
			t.Errorf("%s() needs the action %q", name, m.action)
		}
		if m.action != actionNone {
			asked[m.action] = true
		}
	}
	for name, p := range properties {
		if (p.action == "") != (p.prepare == nil) {
			t.Errorf("setting %s needs the action %q", name, p.action)
		}
		if p.prepare != nil {
			asked[p.action] = true
		}
	}
	slices.Sort(inPolicy)
	if got := slices.Sorted(maps.Keys(asked)); !slices.Equal(got, inPolicy) {
		t.Errorf("actions asked for: %v\nin the policy file: %v", got, inPolicy)
	}
	// The XML says for each method which one, or refers to the property that does.
	for _, m := range documented(t).Methods {
		if action := methods[m.Name].action; action != actionNone && !strings.HasPrefix(m.Name, "Set") {
			comment := interfaceXML[strings.Index(interfaceXML, "      "+m.Name+":"):strings.Index(interfaceXML, `<method name="`+m.Name+`"`)]
			if !strings.Contains(strings.Join(strings.Fields(comment), " "), action) {
				t.Errorf("the documentation of %s() does not name %s", m.Name, action)
			}
		}
	}
}

// Every state, and every reason, is in the documentation.
func TestTheDocumentationHasEveryWordOfTheAnswers(t *testing.T) {
	t.Parallel()
	words := slices.Clone(api.ConnectionStates)
	for reason := forward.ReasonFinished; reason <= forward.ReasonDraining; reason++ {
		words = append(words, reason.String())
	}
	for state := forward.StateRunning; state <= forward.StateExiting; state++ {
		words = append(words, state.String())
	}
	for _, name := range []string{api.ErrorAlreadyDraining, api.ErrorExiting, api.ErrorNoSuchConnection, api.ErrorNotDraining, api.ErrorNotSubscribed} {
		if !strings.Contains(interfaceXML, name) {
			t.Errorf("the error %s is not documented", name)
		}
	}
	for _, word := range words {
		if !strings.Contains(interfaceXML, `"`+word+`"`) {
			t.Errorf("%q is not documented", word)
		}
	}
}

func TestTheClientHasAFieldForEveryProperty(t *testing.T) {
	var want, got []string
	for _, property := range documented(t).Properties {
		want = append(want, property.Name+" "+property.Type)
	}
	for _, field := range reflect.VisibleFields(reflect.TypeFor[client.Properties]()) {
		if !field.Anonymous && field.IsExported() {
			got = append(got, field.Name+" "+dbus.SignatureOfType(field.Type).String())
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the client has %q\nthe interface  %q", got, want)
	}
}

func TestMachineIDIsThatOfTheFirstFileThatIsThere(t *testing.T) {
	t.Parallel()
	first, second := filepath.Join(t.TempDir(), "machine-id"), filepath.Join(t.TempDir(), "machine-id")
	if _, err := machineID([]string{first, second}); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), first) {
		t.Errorf("without a file, the error is %v", err)
	}
	for _, file := range []string{second, first} {
		testenv.Must(t, os.WriteFile(file, []byte(file+"\n"), 0o600))
		id, err := machineID([]string{first, second})
		testenv.Must(t, err)
		testenv.Equal(t, "id", id, file)
	}
}
