# add_python_tests(FILE...)
#
# Adds every case of the files (tests/lib/case.py) to CTest. The files themselves say what they
# have: name, labels, time limit, and what of the host they need for themselves.
set(VMSNAP_PYTHON /usr/bin/python3 CACHE FILEPATH "Python 3 that runs the tests")

function(add_python_tests)
    foreach(file ${ARGN})
        set(path ${CMAKE_CURRENT_SOURCE_DIR}/${file})
        set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${path})
        execute_process(COMMAND ${VMSNAP_PYTHON} -B ${path} --cmake
            OUTPUT_VARIABLE cases COMMAND_ERROR_IS_FATAL ANY)
        foreach(line IN LISTS cases)
            add_python_test(${path} ${line})
        endforeach()
    endforeach()
endfunction()

function(add_python_test path line)
    separate_arguments(fields UNIX_COMMAND "${line}")
    list(GET fields 0 name)
    list(GET fields 1 labels)
    list(GET fields 2 seconds)
    list(GET fields 3 lock)
    string(REPLACE "," ";" labels "${labels}")
    # The case ends itself and cleans up after `seconds`; CTest only when that has failed.
    math(EXPR limit "${seconds} + 30")
    add_test(NAME ${name} COMMAND ${VMSNAP_PYTHON} -B ${path} ${name})
    set_tests_properties(${name} PROPERTIES
        LABELS "${labels}"
        TIMEOUT ${limit}
        SKIP_RETURN_CODE 77
        ENVIRONMENT VMSNAP_BUILD=${CMAKE_BINARY_DIR})
    if(NOT lock STREQUAL "-")
        set_tests_properties(${name} PROPERTIES RESOURCE_LOCK ${lock})
    endif()
endfunction()
