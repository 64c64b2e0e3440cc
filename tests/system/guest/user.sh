# A daemon of a login shell, as the user who logged in.
echo "### scope"
evloopd 2> /test/evloopd.log &
pid=$!
until evloopctl status > /dev/null 2>&1; do sleep 0.2; done
cat /proc/$pid/cgroup
evloopctl status --json
echo "### user's memory"
evloopctl run --name large -- dd if=/dev/zero of=/dev/null bs=40M count=1 2> /dev/null
evloopctl show --json large
echo "### bomb"
cat > /test/bomb <<'END'
trap '' TERM
bomb() { bomb | bomb & }
bomb
sleep 1000
END
evloopctl run -d --name bomb --limit nproc=150 --stderr /dev/null -- bash /test/bomb
evloopctl run -d --name other -- sleep 1000
sleep 3
group=$(evloopctl show --json bomb | sed 's/.*"cgroup":"\([^"]*\)".*/\1/')
echo "### bomb's processes"
wc -l < $group/cgroup.procs
echo "### bomb's stop"
evloopctl stop --time 1s bomb
echo "### bomb's end"
grep -l '/test/[b]omb' /proc/[0-9]*/cmdline 2> /dev/null | wc -l
evloopctl show --json other
evloopctl rm other
kill $pid
wait $pid
echo "### without a manager"
env -u XDG_RUNTIME_DIR -u DBUS_SESSION_BUS_ADDRESS evloopd --socket /test/sock 2> /dev/null &
pid=$!
until evloopctl --socket /test/sock status > /dev/null 2>&1; do sleep 0.2; done
evloopctl --socket /test/sock status --json
kill $pid
