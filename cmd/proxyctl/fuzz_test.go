package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"example.org/socketproxy/internal/bus/api"
	"example.org/socketproxy/internal/bus/client"
	"example.org/socketproxy/internal/printable"
	"example.org/socketproxy/internal/timespan"
	"github.com/godbus/dbus/v5"
	"github.com/spf13/cobra"
)

// hostile are texts that somebody else may choose to be shown.
var hostile = []string{"", "web", "größe", "\x1b[2J\x1b[31m", "a\nb", "\u009b31m\u0085", "\xff\xfe", "\x7f\r\t", strings.Repeat("x", 300), "日本", "e\u0301"}

var ownColours = regexp.MustCompile(`\x1b\[0(;[0-9]+)*m|\x1b\[0m`)

// twice prints with colours and without. It fails where that is more than colours, or something gets through that a
// terminal would obey.
func twice(t *testing.T, term terminal, show func(*ctl) error) (text string) {
	t.Helper()
	var texts [2]string
	for i := range texts {
		var out strings.Builder
		term.colour = i == 1
		c := &ctl{stdout: &out, stderr: &out, terminal: term, now: func() time.Time { return noon }}
		c.destination.Host = "other" // or the journal would be asked
		if err := show(c); err != nil {
			t.Fatal(err)
		}
		texts[i] = strings.ReplaceAll(out.String(), eraseLine, "")
	}
	obeyed := func(r rune) bool { return unicode.IsControl(r) && r != '\n' }
	if !utf8.ValidString(texts[0]) || strings.ContainsFunc(texts[0], obeyed) {
		t.Errorf("a terminal gets %q", texts[0])
	}
	if plain := ownColours.ReplaceAllString(texts[1], ""); plain != texts[0] {
		t.Errorf("without its colours it is\n%q\nand without colours\n%q", plain, texts[0])
	}
	return texts[0]
}

// objects prints as JSON and reads that again.
func objects(t *testing.T, show func(*ctl) error) (read []map[string]any) {
	t.Helper()
	for _, mode := range []jsonMode{jsonShort, jsonPretty} {
		var out bytes.Buffer
		c := &ctl{stdout: &out, stderr: io.Discard, options: options{json: mode}, now: func() time.Time { return noon }}
		if err := show(c); err != nil {
			t.Fatal(err)
		}
		if strings.ContainsFunc(out.String(), func(r rune) bool { return unicode.IsControl(r) && r != '\n' && !(r == '\t' && mode == jsonPretty) }) {
			t.Errorf("a terminal gets %q", &out)
		}
		if mode == jsonShort && strings.Count(out.String(), "\n") > 1 {
			t.Errorf("%q is more than a line", &out)
		}
		read = nil
		decoder := json.NewDecoder(&out)
		decoder.UseNumber()
		for {
			var value any
			if err := decoder.Decode(&value); err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			switch value := value.(type) {
			case []any:
				for _, one := range value {
					read = append(read, one.(map[string]any))
				}
			case map[string]any:
				read = append(read, value)
			}
		}
	}
	return read
}

// same compares what was read as JSON. Bytes that are no UTF-8 may be replaced, and null is infinity, or no time.
func same(t *testing.T, key string, got, want any) {
	t.Helper()
	switch wanted := want.(type) {
	case string:
		text, ok := got.(string)
		known := func(text string) string { return strings.ReplaceAll(strings.ToValidUTF8(text, ""), "\uFFFD", "") }
		if !ok || known(text) != known(wanted) {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	case uint32, uint64:
		if n, ok := got.(json.Number); n.String() != fmt.Sprint(want) &&
			(ok || got != nil || want != uint64(math.MaxUint64) && (want != uint64(0) || !isTime(key))) {
			t.Errorf("%s is %v, want %d", key, got, want)
		}
	}
}

func FuzzTables(f *testing.F) {
	for _, text := range hostile {
		f.Add(text, "open", "192.0.2.1:80", "127.0.0.1:3000", uint64(1), uint64(2), 80, true, false)
		f.Add("web", text, text, text, uint64(math.MaxUint64), uint64(math.MaxUint64), 0, false, true)
		f.Add("web", "running", text, text, uint64(0), uint64(1e9), 30, false, false)
	}
	f.Fuzz(func(t *testing.T, name, state, peer, backend string, n, usec uint64, columns int, isUTF8, full bool) {
		instance := &client.Instance{Name: name}
		uid := uint32(n)
		connection := client.Connection{ID: n, State: state, Client: peer, Backend: backend, BytesToBackend: n, Connected: api.Time(usec),
			Age: api.Span(usec), Idle: api.Span(n), Listener: peer, UID: &uid}
		properties := &client.Properties{State: state, Target: backend, ListenAddresses: []string{peer, backend}, NConnections: uid}
		connections := func(detailed bool) table {
			table := connectionsTable(true, detailed)
			table.add(instance, []client.Connection{connection, {}})
			return table.table
		}
		list := (&ctl{}).listTable([]described{{instance, properties}, {&client.Instance{}, new(client.Properties)}},
			[]client.Socket{{Unit: "proxyd@" + peer + ".socket", Active: state, Sub: state, Addresses: []string{peer, backend}}})
		for _, table := range []table{connections(false), list} {
			term := terminal{columns: max(0, columns), utf8: isUTF8}
			text := twice(t, term, func(c *ctl) error {
				c.full = full
				return c.show(table)
			})
			lines := strings.Split(text, "\n")
			if len(lines) != len(table.rows)+4 { // the header, the rows, an empty one, the count, and what follows its end
				t.Fatalf("%q", lines)
			}
			for _, line := range lines {
				if width := width(line); !full && term.columns > 0 && width > max(term.columns, narrowest(table)) {
					t.Errorf("%q has %d columns of %d, and %d would do", line, width, columns, narrowest(table))
				}
			}
		}
		read := objects(t, func(c *ctl) error { return c.show(connections(true)) })[0]
		for key, want := range map[string]any{
			"instance": name, "state": state, "client": peer, "backend": backend, "listener": peer, "id": n, "to_backend": n, "uid": uid,
		} {
			same(t, key, read[key], want)
		}
	})
}

// narrowest is how wide a table is whose columns have given way as far as they do.
func narrowest(t table) (columns int) {
	for i, column := range t.columns {
		widest := width(column.header)
		for _, row := range t.rows {
			widest = max(widest, width(printable.Line(row[i].text)))
		}
		if !column.fixed && !column.right {
			widest = min(widest, max(8, width(column.header)))
		}
		columns += widest + 1
	}
	return columns - 1
}

func FuzzStatusAndShow(f *testing.F) {
	for _, text := range hostile {
		f.Add(text, "running", "127.0.0.1:3000", "1.2", uint64(math.MaxUint64), uint64(1), uint32(3))
		f.Add("web", text, text, text, uint64(0), uint64(math.MaxInt64), uint32(math.MaxUint32))
	}
	f.Fuzz(func(t *testing.T, name, state, address, version string, usec, bytes uint64, n uint32) {
		given := map[string]any{
			"Name": name, "Version": version, "Target": address, "ListenAddresses": []string{address, name}, "ProcessID": n, "StartTimestamp": usec,
			"State": state, "ConnectionsMax": n, "ExitIdleTimeUSec": usec, "NConnections": n, "DrainDeadline": bytes, "NRefused": bytes,
			"BytesToClient": bytes, "FromTheFuture": address,
		}
		values := map[string]dbus.Variant{}
		for key, value := range given {
			values[key] = dbus.MakeVariant(value)
		}
		properties := new(client.Properties)
		if err := properties.Update(values); err != nil {
			t.Fatal(err)
		}
		instances := []described{{&client.Instance{Name: name}, properties}}

		status := twice(t, terminal{}, func(c *ctl) error { return c.printStatus(context.Background(), instances) })
		if lines := strings.Count(status, "\n"); lines < 9 || lines > 11 {
			t.Errorf("%d lines:\n%s", lines, status)
		}
		told := slices.DeleteFunc(client.PropertyNames(), func(name string) bool { return given[name] == nil })
		show := twice(t, terminal{}, func(c *ctl) error { return c.showLines(instances, nil, false) })
		for i, line := range slices.Collect(strings.Lines(show)) {
			key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
			if i >= len(told) || key != told[i] {
				t.Fatalf("line %d is %q", i, line)
			}
			switch want := given[key].(type) {
			case string:
				same(t, key, value, printable.Line(want))
			case uint32:
				same(t, key, json.Number(value), want)
			case uint64:
				if span, err := timespan.Parse(value); strings.HasSuffix(key, "USec") && (err != nil || span != api.Span(want)) {
					t.Errorf("%s=%s, want %d", key, value, want)
				}
			}
		}
		read := objects(t, func(c *ctl) error { return c.showObjects(instances, nil) })[0]
		for _, key := range told {
			same(t, key, read[key], given[key])
		}
	})
}

func FuzzMonitor(f *testing.F) {
	for i, text := range hostile {
		f.Add(text, "192.0.2.1:80", "127.0.0.1:3000", "finished", uint64(1), uint64(2), uint8(i))
		f.Add("web", text, text, text, uint64(math.MaxUint64), uint64(math.MaxUint64), uint8(i))
	}
	f.Fuzz(func(t *testing.T, name, peer, backend, reason string, id, n uint64, kind uint8) {
		const owner = ":1.5"
		events := []client.Event{
			client.ConnectionNew{Owner: owner, ID: id, Client: peer, Backend: backend},
			client.ConnectionRemoved{Owner: owner, ID: id, Reason: reason, BytesToBackend: n, Duration: api.Span(n)},
			client.ConnectionRefused{Owner: owner, Client: peer, Reason: reason},
			client.PropertiesChanged{Owner: owner, Values: map[string]dbus.Variant{"State": dbus.MakeVariant(reason), backend: dbus.MakeVariant(peer)}},
			client.PropertiesChanged{Owner: owner, Values: map[string]dbus.Variant{"ExitIdleTimeUSec": dbus.MakeVariant(n), "NConnections": dbus.MakeVariant(uint32(n))}},
			client.InstanceChanged{Name: name, OldOwner: owner},
			client.ConnectionNew{Owner: ":1.6", ID: id, Client: peer, Backend: backend}, // nobody follows that one
			client.InstanceChanged{Name: peer + name, OldOwner: ":1.6"},
		}
		event := events[int(kind)%len(events)]
		happen := func(c *ctl) error {
			c.bus = new(client.Client)
			m := &monitor{ctl: c, followed: map[string]*followed{owner: {name: name, clients: map[uint64]string{7: backend}, most: 9}}}
			return m.handle(context.Background(), event)
		}
		want, refused := 1, false // lines
		if e, ok := event.(client.PropertiesChanged); ok {
			want, refused = 0, new(client.Properties).Update(e.Values) != nil
			for _, property := range []string{"State", "ConnectionsMax", "ExitIdleTimeUSec", "DrainDeadline", "BackendState"} {
				if _, ok := e.Values[property]; ok {
					want++
				}
			}
		} else if int(kind)%len(events) > 5 {
			want = 0
		}
		text := twice(t, terminal{}, happen)
		read := objects(t, happen)
		if refused {
			if strings.Count(text, "\n") != 1 || !strings.HasPrefix(text, "proxyctl: cannot understand ") || len(read) != 0 {
				t.Errorf("%q and %v", text, read)
			}
			return
		}
		if strings.Count(text, "\n") != want || len(read) != want {
			t.Fatalf("%q and %v, want %d", text, read, want)
		}
		if want == 0 {
			return
		}
		same(t, "instance", read[0]["instance"], name)
		switch e := event.(type) {
		case client.ConnectionNew:
			same(t, "client", read[0]["client"], peer)
			same(t, "backend", read[0]["backend"], backend)
			same(t, "id", read[0]["id"], id)
		case client.ConnectionRemoved:
			same(t, "reason", read[0]["reason"], e.Reason)
			same(t, "to_backend", read[0]["to_backend"], n)
		}
	})
}

func FuzzProgress(f *testing.F) {
	for _, text := range hostile {
		f.Add(text, "draining", uint32(3), uint64(math.MaxUint64), 80, true)
		f.Add("web", text, uint32(math.MaxUint32), uint64(0), 1, false)
	}
	f.Fuzz(func(t *testing.T, name, state string, n uint32, deadline uint64, columns int, isTerminal bool) {
		term := terminal{isTerminal: isTerminal, columns: 1 + max(0, columns)%1000, utf8: true}
		begun := func(c *ctl) *wait {
			w := c.newWait(true)
			for _, of := range []string{name, "other"} {
				w.add(&client.Instance{Name: of, Owner: of}, state)
			}
			w.left[0].NConnections, w.left[0].DrainDeadline = n, deadline
			return w
		}
		line := twice(t, term, func(c *ctl) error {
			w := begun(c)
			w.progress()
			w.progress()
			return nil
		})
		if isTerminal && (width(line) > max(1, term.columns-1) || strings.Contains(line, "\n")) || !isTerminal && strings.Count(line, "\n") != 1 {
			t.Errorf("in %d columns: %q", term.columns, line)
		}
		for _, step := range []func(*wait){
			func(w *wait) { w.interrupted() },
			func(w *wait) { w.gone(w.left[0]) },
			func(w *wait) { w.follow(context.Background(), client.InstanceChanged{Name: name, OldOwner: name}) },
		} {
			text := twice(t, term, func(c *ctl) error { step(begun(c)); return nil })
			if strings.Count(text, "\n") != 1 {
				t.Errorf("%q", text)
			}
		}
	})
}

func FuzzNames(f *testing.F) {
	for _, name := range []string{"web", "web.service", "*", "[", "w?b", api.BaseName + ".web", "[^a]*", `\`, "", "a/b", api.BaseName + "._1b"} {
		f.Add(name, "web", "w?b")
		f.Add("*", name, "\x1b")
	}
	f.Fuzz(func(t *testing.T, name, one, other string) {
		instances := []*client.Instance{{Name: one, Aliases: []string{other}}, {Name: "db"}}
		found := matching(instances, name)
		switch {
		case name == one, name == other, name == one+".service" && one != "db":
			if len(found) != 1 || found[0] != instances[0] {
				t.Errorf("%q stands for %q", name, namesOf(found))
			}
		case name == "db":
			if len(found) != 1 || found[0] != instances[1] {
				t.Errorf("%q stands for %q", name, namesOf(found))
			}
		case !strings.ContainsAny(name, `*?[\`) && !strings.HasPrefix(name, api.BaseName+".") && !strings.HasSuffix(name, ".service"):
			if len(found) != 0 {
				t.Errorf("%q stands for %q", name, namesOf(found))
			}
		}
		if busName, err := api.InstanceBusName(one); err == nil && one != "db" && other != busName {
			if found := matching(instances, busName); len(found) != 1 || found[0] != instances[0] {
				t.Errorf("%s stands for %q", busName, namesOf(found))
			}
		}
		for _, instance := range found {
			pattern := strings.TrimSuffix(name, ".service")
			if ok, err := path.Match(pattern, instance.Name); len(found) > 1 && (!ok || err != nil) {
				t.Errorf("%q stands for %q", name, instance.Name)
			}
		}
	})
}

func FuzzCommandLine(f *testing.F) {
	for _, line := range []string{
		"", "list", "status web", "-H a -M b", "--user -H a", "close web 17 --client=::1 --idle=1h", "drain --timeout=5min --refuse", "show -pName --value",
		"set web connections-max=0 exit-idle-time=infinity", "monitor -j --json=pretty", "--json=x", "-x", "help", "--version", "completion bash",
		"__complete status ", "lst", "list \x1b", "--address=\x1b[2J", "connections --older=-1", "--no-pager=maybe", "-qlj", "--help drain",
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Split(line, " ")
		var out, errs strings.Builder
		c := &ctl{stdout: &out, stderr: &errs}
		command := c.command()
		ran := 0
		for _, one := range append(command.Commands(), command) {
			if one.RunE != nil && one.Name() != "help" && one.Name() != "completion" {
				one.RunE = func(*cobra.Command, []string) error { ran++; return nil }
			}
			one.ValidArgsFunction = nil // what completes asks the bus
		}
		command.SetArgs(args)
		command.SetOut(&out)
		command.SetErr(&errs)
		err := command.Execute()
		if err != nil && ran > 0 {
			t.Errorf("%q is wrong and done: %v", args, err)
		}
		d := c.destination
		if given := slices.DeleteFunc([]string{d.Address, d.Host, d.Machine}, func(s string) bool { return s == "" }); ran > 0 &&
			(len(given) > 1 || d.User && d.Host != "" || !slices.Contains([]jsonMode{jsonOff, jsonShort, jsonPretty, jsonAuto}, c.json)) {
			t.Errorf("%q is taken for %+v", args, c.options)
		}
		if ran > 0 && out.Len()+errs.Len() > 0 {
			t.Errorf("%q prints %q%q", args, out.String(), errs.String())
		}
		if err != nil {
			c.fail(err)
			if text := errs.String(); c.status != statusFailure || !strings.HasSuffix(text, "\n") ||
				strings.ContainsFunc(strings.TrimSuffix(text, "\n"), unicode.IsControl) {
				t.Errorf("%q: status %d, %q", args, c.status, text)
			}
		}
		for _, arg := range args {
			key, value, _ := strings.Cut(arg, "=")
			span, notSpan := timespan.Parse(value)
			n, notNumber := strconv.ParseUint(value, 10, 32)
			change, err := parseSetting(arg)
			right := key == "connections-max" && notNumber == nil && n > 0 || key == "exit-idle-time" && notSpan == nil && span >= 0
			if (err == nil) != right || (change == nil) == right {
				t.Errorf("%q: %v", arg, err)
			}
		}
	})
}
