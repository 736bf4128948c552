package e2e

import ("testing";"fmt")

func TestZZ(t *testing.T) {
	m := onMachine(t)
	i := instance{name: "zz", target: m.echo(t, "tcp")}
	m.connect(t, "tcp", m.proxy(t, i))
	t.Log(m.run(t, "bash", "-c", fmt.Sprintf(`p=%d; cat /proc/$p/mountinfo | cut -d' ' -f4-6; ls -lan /proc/$p/root/ /proc/$p/root/run/proxyd /run/proxyd/zz; for d in / /run/proxyd/zz /tmp /etc /dev /dev/shm /var/tmp /run /proc/sys/kernel; do setpriv --reuid proxyd --regid proxyd --clear-groups touch /proc/$p/root$d/x && echo "can write $d"; done; setpriv --reuid proxyd --regid proxyd --clear-groups touch /run/proxyd/zz/x && echo outside
	for k in 1 2 3 4 5; do systemctl stop proxyd@zz.service; systemctl start proxyd@zz.service;  systemctl show -p ExecMainStartTimestampMonotonic -p ActiveEnterTimestampMonotonic -p InactiveExitTimestampMonotonic proxyd@zz.service | tr '\n' ' '; echo; done
	`, m.mainPID(t, i.unit()))))
}
