# Timers while the clock is set, while the host is suspended, and while its time zones are replaced.
export EVLOOPD_SOCKET=/run/evloopd/evloopd.sock
backends="epoll poll select io-uring"
zones=/usr/share/zoneinfo

# Runs a function for each backend, all at once.
each() {
    for backend in $backends; do "$1" "$backend" & done
    wait
}
timer() { evloopctl --loop "$1" watch timer --name "$2" "${@:3}" > /dev/null 2>&1; }
uptime() { read -r up _ < /proc/uptime; echo "$up"; }
cpu() { read -r -a stat < "/proc/$(systemctl show -P MainPID evloopd)/stat"; echo $((stat[13] + stat[14])); }
# Sets the clock about half a second after a full one, then waits.
step() {
    until [[ ${EPOCHREALTIME#*.} == [34]* ]]; do sleep 0.05; done
    before=$(uptime)
    date -s "$2" > /dev/null
    echo "$1 $before $(uptime)"
    sleep "$3"
}

# Nothing else wakes the loop with the hour, so that it must notice a step by itself.
begin() {
    policy=default
    [[ $1 == io-uring ]] && policy=proactor
    for loop in often hour; do
        evloopctl loop new "$loop-$1" --policy $policy --backend "${1/-/_}" --history kept
    done
    timer "often-$1" second --cron '* * * * * *' --zone UTC
    timer "often-$1" five --cron '*/5 * * * * *' --zone UTC
    timer "often-$1" every --every 1s
    timer "often-$1" hour --after 1h
    timer "hour-$1" hourly --cron '0 * * * *' --zone UTC
    timer "hour-$1" at --at 2031-03-05T11:10:00Z
    timer "hour-$1" local --cron '0 12 * * *' --zone local
    timer "hour-$1" tokyo --cron '0 12 * * *' --zone Asia/Tokyo
} > /dev/null

systemctl stop '*.timer' systemd-timesyncd 2> /dev/null
systemctl start evloopd
date -s "2031-03-05 10:30:00Z" > /dev/null
SECONDS=0
each begin
# What must not count the suspension takes longer than it takes here to begin it all.
lasts=$((SECONDS + 8))

echo "### zones"
evloopctl status | grep 'time zones'
uptime
# As a package replaces the database, and timedatectl the host's own zone.
sed '1s/.*/# version 2099a/' $zones/tzdata.zi > $zones/tzdata.zi.new
cp $zones/America/New_York $zones/Asia/Tokyo.new
touch -d 2020-01-01 $zones/tzdata.zi.new $zones/Asia/Tokyo.new
mv $zones/tzdata.zi.new $zones/tzdata.zi
mv $zones/Asia/Tokyo.new $zones/Asia/Tokyo
ln -s $zones/Asia/Kathmandu /etc/localtime.new
mv -T /etc/localtime.new /etc/localtime

# The loops notice by themselves, while there is no request.
echo "### steps"
echo "cpu $(cpu) $(uptime)"
step second '1 second' 1.5
step second-back '-1 second' 2.5
step hour '1 hour' 1.5
step hour-back '-1 hour' 2
step hour-again '1 hour' 1.5
step hours-back '-179 minutes' 2
step hours-again '179 minutes' 1.5
step years-back '2021-03-05 11:59:57Z' 5
step years '10 years' 2
echo "cpu $(cpu) $(uptime)"

sleepers() {
    timer "hour-$1" leased --after 1h --lease $lasts
    evloopctl --loop "hour-$1" run -d --name late --timeout $lasts -- sleep 1000
    evloopctl --loop "hour-$1" run -d --name stubborn -- \
        sh -c 'trap "echo asked" TERM; echo ready; while :; do sleep 1000; done'
    evloopctl --loop "hour-$1" stop --time $lasts stubborn &
} > /dev/null 2>&1
delay() { timer "hour-$1" after --after 8; }
each sleepers
each delay
echo "### suspend"
cat /sys/power/mem_sleep
echo +15 > /sys/class/rtc/rtc0/wakealarm
uptime
echo mem > /sys/power/state
uptime
echo $lasts
evloopctl status | grep 'time zones'
for backend in $backends; do evloopctl --loop "hour-$backend" wait late stubborn > /dev/null 2>&1; done

printed() {
    for loop in often hour; do
        evloopctl --loop "$loop-$1" events --json | gzip | base64 -w 0 > "/test/$loop-$1"
    done
}
each printed
echo "### loops"
evloopctl loop list --json
for backend in $backends; do
    for loop in often-$backend hour-$backend; do
        echo "### events of $loop"
        cat "/test/$loop"
        echo
    done
done
