package bustest

import (
	"reflect"
	"testing"

	"github.com/godbus/dbus/v5"
)

const drain = "org.example.SocketProxy1.drain"

// ask asks polkit as a daemon does.
func ask(conn *dbus.Conn, cancellationID string) *dbus.Call {
	who := subject{"system-bus-name", map[string]dbus.Variant{"name": dbus.MakeVariant(":1.7")}}
	return conn.Object("org.freedesktop.PolicyKit1", "/org/freedesktop/PolicyKit1/Authority").Go(
		"org.freedesktop.PolicyKit1.Authority.CheckAuthorization", 0, make(chan *dbus.Call, 1),
		who, drain, map[string]string{"instance": "web"}, uint32(1), cancellationID)
}

func answerTo(t *testing.T, call *dbus.Call) (r result, errName string) {
	t.Helper()
	if err := Receive(t, call.Done).Store(&r); err != nil {
		return result{}, errorName(err)
	}
	return r, ""
}

func TestPolkitGivesTheAnswerThatIsSet(t *testing.T) {
	b := Start(t, Options{})
	polkit, conn := StartPolkit(t, b), b.Connect(t)
	for _, test := range []struct {
		name    string
		answer  Answer
		want    result
		errName string
	}{
		{"no", No, result{Details: map[string]string{}}, ""},
		{"yes", Yes, result{IsAuthorized: true, Details: map[string]string{}}, ""},
		{"challenge", Challenge, result{IsChallenge: true, Details: map[string]string{}}, ""},
		{"dismissed", Dismissed, result{Details: map[string]string{"polkit.dismissed": "true"}}, ""},
		{"failed", Failed, result{}, "org.freedesktop.PolicyKit1.Error.Failed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			polkit.Answer(drain, test.answer)
			got, errName := answerTo(t, ask(conn, ""))
			if !reflect.DeepEqual(got, test.want) || errName != test.errName {
				t.Errorf("%+v, %s; want %+v, %s", got, errName, test.want, test.errName)
			}
			Receive(t, polkit.Requests)
		})
	}
}

func TestPolkitTellsWhatItWasAsked(t *testing.T) {
	b := Start(t, Options{})
	polkit, conn := StartPolkit(t, b), b.Connect(t)
	ask(conn, "1")
	want := Request{conn.Names()[0], "system-bus-name", ":1.7", drain, map[string]string{"instance": "web"}, 1, "1"}
	if got := Receive(t, polkit.Requests); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestASilentPolkitWaits(t *testing.T) {
	for _, test := range []struct {
		name    string
		until   func(t *testing.T, p *Polkit, caller *dbus.Conn)
		want    bool
		errName string
	}{
		{"until another answer is set", func(_ *testing.T, p *Polkit, _ *dbus.Conn) {
			p.Answer(drain, Yes)
		}, true, ""},
		{"until the request is cancelled", func(t *testing.T, p *Polkit, caller *dbus.Conn) {
			err := caller.Object("org.freedesktop.PolicyKit1", "/org/freedesktop/PolicyKit1/Authority").Call(
				"org.freedesktop.PolicyKit1.Authority.CancelCheckAuthorization", 0, "1").Err
			if err != nil {
				t.Error(err)
			}
			if got, want := Receive(t, p.Cancellations), (Cancellation{caller.Names()[0], "1"}); got != want {
				t.Errorf("cancelled %v, want %v", got, want)
			}
		}, false, "org.freedesktop.PolicyKit1.Error.Cancelled"},
		{"until it goes", func(_ *testing.T, p *Polkit, _ *dbus.Conn) {
			p.Close()
		}, false, "org.freedesktop.DBus.Error.NoReply"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := Start(t, Options{})
			polkit, caller := StartPolkit(t, b), b.Connect(t)
			polkit.Answer("", Silent)
			call := ask(caller, "1")
			Receive(t, polkit.Requests)
			select {
			case <-call.Done:
				t.Fatal("it has answered at once")
			default:
			}
			test.until(t, polkit, caller)
			got, errName := answerTo(t, call)
			if got.IsAuthorized != test.want || errName != test.errName {
				t.Errorf("%+v, %s; want %t, %s", got, errName, test.want, test.errName)
			}
		})
	}
}
