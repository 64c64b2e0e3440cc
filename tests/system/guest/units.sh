# The shipped units, as root.
export EVLOOPD_SOCKET=/run/evloopd/evloopd.sock
shown() { evloopctl show --json "$1"; }
systemctl start evloopd
echo "### status"
evloopctl status --json
echo "### own cgroup"
cat /proc/$(systemctl show -P MainPID evloopd)/cgroup
echo "### memory"
evloopctl run --name large -- dd if=/dev/zero of=/dev/null bs=40M count=1 2> /dev/null
shown large
echo "### neighbour"
evloopctl run -d --name neighbour -- sleep 1000
evloopctl run -d --name greedy -i -- sh -c 'read go; dd if=/dev/zero of=/dev/null bs=60M count=1'
group=$(shown greedy | sed 's/.*"cgroup":"\([^"]*\)".*/\1/')
echo 20M > $group/memory.max
echo 0 > $group/memory.swap.max
echo go | evloopctl write greedy
evloopctl wait greedy
shown greedy
echo "### after"
shown neighbour
systemctl is-active evloopd
echo "### stopped"
systemctl restart evloopd
systemctl is-active evloopd
evloopctl run -- true && echo runs
systemctl stop evloopd
ls /sys/fs/cgroup/system.slice | grep evloopd || echo nothing
systemctl start login
cat /test/user.log
