/* A QEMU command line is read as QEMU reads it; what it opens is found. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "restore/launch/qemu/endpoint.h"
#include "restore/launch/qemu/line.h"

static struct qemu_line line;

static void parse(char *const *argv)
{
    cr_assert_eq(qemu_line_parse(&line, argv), 0);
}

static void finish(void)
{
    qemu_line_free(&line);
}

TestSuite(line, .fini = finish);

Test(line, options_values_and_bare_words)
{
    parse((char *[]){"qemu-system-x86_64", "-S", "-m", "1G", "--nodefaults", "disk.img", "-append",
                     "-S quiet", "-enable-kvm", "-smp", NULL});
    cr_assert_eq(line.vmm, 0);
    cr_assert_eq(line.n_options, 7);
    cr_assert(qemu_option_is(&line.options[0], "S"));
    cr_assert_null(line.options[0].value);
    cr_assert(qemu_option_is(&line.options[1], "m"));
    cr_assert_str_eq(line.options[1].value, "1G");
    cr_assert(qemu_option_is(&line.options[2], "nodefaults"));
    cr_assert_str_eq(line.options[3].name, "");
    cr_assert_str_eq(line.options[3].value, "disk.img");
    cr_assert_str_eq(line.options[4].value, "-S quiet", "a value may look like an option");
    cr_assert(qemu_option_is(&line.options[5], "enable-kvm"));
    cr_assert(qemu_option_is(&line.options[6], "smp"));
    cr_assert_null(line.options[6].value, "a value that is missing at the end");
}

Test(line, a_wrapper_is_stepped_over)
{
    parse((char *[]){"runuser", "-u", "vm", "--", "/usr/bin/qemu-system-x86_64", "-m", "1G", NULL});
    cr_assert_eq(line.vmm, 4);
    cr_assert_eq(line.n_options, 1);
    cr_assert_eq(line.options[0].at, 5);
}

Test(line, a_vmm_of_another_name_is_the_first_word)
{
    parse((char *[]){"/opt/vmm", "-m", "1G", NULL});
    cr_assert_eq(line.vmm, 0);
    cr_assert_eq(line.n_options, 1);
}

Test(value, keys_switches_and_commas)
{
    json_t *v = qemu_value_parse("socket,id=a,,b,path=/x=y,server,nowait,nodelay=on", "backend");
    cr_assert_str_eq(qemu_value_string(v, "backend"), "socket");
    cr_assert_str_eq(qemu_value_string(v, "id"), "a,b");
    cr_assert_str_eq(qemu_value_string(v, "path"), "/x=y");
    cr_assert(qemu_value_switch(v, "server", false));
    cr_assert_not(qemu_value_switch(v, "wait", true));
    cr_assert(qemu_value_switch(v, "nodelay", false));
    cr_assert(qemu_value_switch(v, "absent", true));
    cr_assert_not(qemu_value_switch(v, "path", false));
    json_decref(v);
}

Test(value, json_and_dots_mean_the_same)
{
    json_t *a = qemu_value_parse("{\"server\": true, \"addr\": {\"type\": \"unix\"}}", "type");
    json_t *b = qemu_value_parse("stream,server=on,addr.type=unix", "type");
    cr_assert(qemu_value_switch(a, "server", false));
    cr_assert_str_eq(qemu_value_string(a, "addr.type"), "unix");
    cr_assert_str_eq(qemu_value_string(b, "addr.type"), "unix");
    cr_assert_null(qemu_value_string(a, "addr.path"));
    cr_assert_null(qemu_value_string(a, "server.type"));
    json_decref(a);
    json_decref(b);
}

Test(value, nonsense_is_an_empty_object)
{
    static const char *const values[] = {"", "{", "{\"a\": ", ",", ",,,", "=", "no"};
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        json_t *v = qemu_value_parse(values[i], NULL);
        cr_assert_not_null(v);
        cr_assert_null(qemu_value_string(v, "path"));
        json_decref(v);
    }
}

/* What one option opens, as "KIND what [waits]" per line. */
static const char *opened(const char *option, const char *value)
{
    static char text[512];
    struct qemu_option o = {.name = option, .value = value};
    struct endpoint_list list = {0};
    cr_assert_eq(endpoints_of_option(&list, &o), 0);
    text[0] = '\0';
    for (size_t i = 0; i < list.count; i++) {
        const struct endpoint *e = &list.items[i];
        size_t used = strlen(text);
        if (e->kind == ENDPOINT_TCP_LISTEN)
            snprintf(text + used, sizeof(text) - used, "tcp %s:%s", e->host, e->port);
        else
            snprintf(text + used, sizeof(text) - used, "%s %s",
                     e->kind == ENDPOINT_TRUNCATE ? "file"
                     : e->abstract                ? "abstract"
                                                  : "unix",
                     e->path);
        used = strlen(text);
        snprintf(text + used, sizeof(text) - used, "%s;", e->waits ? " waits" : "");
    }
    endpoint_list_free(&list);
    return text;
}

/* { option, value, what it opens } */
static const char *const opens[][3] = {
    {"qmp", "unix:/run/q,server=on,wait=off", "unix /run/q;"},
    {"qmp", "unix:/run/q,server,nowait", "unix /run/q;"},
    {"qmp", "unix:/run/q,server", "unix /run/q waits;"},
    {"qmp", "unix:/run/q", ""},
    {"monitor", "tcp:127.0.0.1:4444,server=on,wait=off", "tcp 127.0.0.1:4444;"},
    {"monitor", "stdio", ""},
    {"serial", "file:/var/log/vm", "file /var/log/vm;"},
    {"serial", "mon:stdio", ""},
    {"serial", "mon:telnet::5555,server,nowait", "tcp :5555;"},
    {"serial", "chardev:c0", ""},
    {"serial", "tcp:[::1]:99,server,nowait", "tcp ::1:99;"},
    {"chardev", "socket,id=c,path=/s,server=on,wait=off", "unix /s;"},
    {"chardev", "socket,id=c,path=/s,server=on", "unix /s waits;"},
    {"chardev", "socket,id=c,path=s,abstract=on,server=on,wait=off", "abstract s;"},
    {"chardev", "socket,id=c,path=/s", ""},
    {"chardev", "socket,id=c,host=h,port=1,server=on,wait=off", "tcp h:1;"},
    {"chardev", "socket,id=c,host=h,port=1,to=9,server=on,wait=off", ""},
    {"chardev", "file,id=c,path=/f", "file /f;"},
    {"chardev", "file,id=c,path=/f,append=on", ""},
    {"chardev", "stdio,id=c,logfile=/l", "file /l;"},
    {"chardev", "stdio,id=c,logfile=/l,logappend=on", ""},
    {"gdb", "tcp::1234", "tcp :1234;"},
    {"gdb", "unix:/g", "unix /g;"},
    {"s", NULL, "tcp :1234;"},
    {"vnc", ":1", "tcp :5901;"},
    {"vnc", "127.0.0.1:12,password=on", "tcp 127.0.0.1:5912;"},
    {"vnc", "unix:/v", "unix /v;"},
    {"vnc", ":1,to=9", ""},
    {"vnc", "host:5500,reverse=on", ""},
    {"vnc", "none", ""},
    {"display", "vnc=:2", "tcp :5902;"},
    {"display", "gtk", ""},
    {"spice", "port=5930,addr=127.0.0.1,disable-ticketing=on", "tcp 127.0.0.1:5930;"},
    {"spice", "unix=on,addr=/sp", "unix /sp;"},
    {"netdev", "user,id=n,hostfwd=tcp::22-:22,hostfwd=tcp:127.0.0.1:80-:80",
     "tcp :22;tcp 127.0.0.1:80;"},
    {"nic", "user,hostfwd=udp::53-:53", ""},
    {"netdev", "socket,id=n,listen=:7000", "tcp :7000;"},
    {"netdev", "stream,id=n,server=on,addr.type=unix,addr.path=/n", "unix /n;"},
    {"netdev", "stream,id=n,server=on,addr.type=inet,addr.host=h,addr.port=7", "tcp h:7;"},
    {"netdev", "stream,id=n,server=off,addr.type=unix,addr.path=/n", ""},
    {"netdev",
     "{\"type\":\"stream\",\"id\":\"n\",\"server\":true,\"addr\":{\"type\":\"unix\","
     "\"path\":\"/n\"}}",
     "unix /n;"},
    {"object", "filter-dump,id=f,netdev=n,file=/d", "file /d;"},
    {"object", "memory-backend-ram,id=f,size=1G", ""},
    {"trace", "enable=x,file=/t", "file /t;"},
    {"D", "/log", "file /log;"},
    {"append", "unix:/x,server", ""},
};

Test(endpoint, every_place_where_qemu_opens_something)
{
    for (size_t i = 0; i < sizeof(opens) / sizeof(opens[0]); i++) {
        const char *got = opened(opens[i][0], opens[i][1]);
        cr_assert_str_eq(got, opens[i][2], "-%s %s opens '%s', not '%s'", opens[i][0],
                         opens[i][1] ? opens[i][1] : "", got, opens[i][2]);
    }
}
